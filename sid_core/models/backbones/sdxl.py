"""Load Stable Diffusion XL: two CLIP text encoders, a UNet that also takes a pooled text and the image's size, a VAE."""

from collections.abc import Collection, Sequence
from pathlib import Path

import torch
from torch import Tensor

from ...errors import UserError
from ...storage.files import read_json
from ..conditioning import Conditioning
from ..vae import ImageCodec
from .base import Backbone
from .layout import UNUSED_INDEX, TextEncoders, component_files
from .sd import StableDiffusion
from .shared_prefix import EXTRAS, has_known_blocks, time_embedding

PIXELS = 8  # side of a latent in pixels of the image
SIZES = 6  # time_ids: height and width of the original, of the crop's corner, and of the image


class StableDiffusionXL(StableDiffusion):
    """A UNet with two text encoders, conditioned on the size of images without crop: time_ids (H, W, 0, 0, H, W)."""

    # the second one is how some fine-tunes name themselves; the refiner too, which `check_files` rejects
    PIPELINES = ("StableDiffusionXLPipeline", "StableDiffusionXLImg2ImgPipeline", "StableDiffusionXLInpaintPipeline")
    EXPECTED = "expected Stable Diffusion XL's: two CLIP text encoders, a UNet2DConditionModel and an AutoencoderKL"
    # a watermark would change the image
    INDEX = UNUSED_INDEX | {"force_zeros_for_empty_prompt": True, "add_watermarker": False}
    FOREIGN = ("text_encoder_3", "tokenizer_3", "transformer")
    CLASSES = StableDiffusion.CLASSES | {
        "tokenizer_2": StableDiffusion.CLASSES["tokenizer"],
        "text_encoder_2": ("CLIPTextModelWithProjection",),
    }
    SETTINGS = StableDiffusion.SETTINGS | {
        "unet": StableDiffusion.SETTINGS["unet"] | {"addition_embed_type": "text_time"}
    }
    WEIGHTS, CONFIGS, NEEDED = component_files(CLASSES)
    BACKWARD_ORDER = StableDiffusion.BACKWARD_ORDER | {"add_embedding": 3}

    def predict(self, x_t: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
        added = _added_conditions(x_t, cond)
        return self.network(x_t, t, encoder_hidden_states=cond.tokens, added_cond_kwargs=added).sample

    # the pooled text enters with the timestep, before the first block: both branches share nothing
    predict_pair = Backbone.predict_pair

    def separable(self) -> bool:
        return has_known_blocks(self.network, EXTRAS - {"add_embedding"})

    def embed(self, x_t: Tensor, t: Tensor, cond: Conditioning) -> tuple[Tensor, Tensor]:
        """Return x_t and the embedding of t, pooled text and size, a row of both for each prompt."""
        branches = len(cond) // len(x_t)
        x_t, t = torch.cat([x_t] * branches), torch.cat([t] * branches)
        emb = time_embedding(self.network, x_t, t)
        return x_t, emb + self.network.get_aug_embed(emb, cond.tokens, _added_conditions(x_t, cond))

    @classmethod
    def text_encoder(cls, folder: Path) -> "ClipEncoders":
        encoder = ClipEncoders(cls.load_encoders(folder))
        # diffusers' default
        encoder.zeros = read_json(folder / "model_index.json").get("force_zeros_for_empty_prompt", True)
        return encoder

    @classmethod
    def image_codec(cls, folder: Path, at_once: int | None = None) -> ImageCodec:
        codec = super().image_codec(folder, at_once)
        codec.float32 = codec.vae.config.force_upcast
        return codec

    @classmethod
    def check_files(cls, files: Collection[str], place: str) -> None:
        """Reject the refiner by its single text encoder, and folders of other families."""
        folders = {name.split("/")[0] for name in files if "/" in name}
        if "text_encoder_2" in folders and "text_encoder" not in folders:
            raise UserError(
                f"{place}: has text_encoder_2 and no text_encoder: SDXL's refiner, which continues samples of another model; "
                f"{cls.EXPECTED}. Fix: give the base model"
            )
        super().check_files(files, place)

    @classmethod
    def check_configs(cls, folder: Path, place: str) -> None:
        """Reject another number of time_ids, such as the refiner's five, and VAEs of another image size."""
        super().check_configs(folder, place)
        unet, text, vae = (read_json(folder / name / "config.json") for name in ("unet", "text_encoder_2", "vae"))
        width = unet.get("projection_class_embeddings_input_dim")
        pooled = text.get("projection_dim", 512)  # transformers' default
        size = unet.get("addition_time_embed_dim")
        if not size or width != pooled + SIZES * size:
            refiner = " (SDXL's refiner has 5)" if size and width == pooled + 5 * size else ""
            raise UserError(
                f"{place}: unet: projection_class_embeddings_input_dim={width}: expected text_encoder_2's projection_dim {pooled} "
                f"and {SIZES} time_ids{refiner} of addition_time_embed_dim {size}. Fix: give the base model"
            )
        levels = len(vae.get("block_out_channels", [0]))
        if 2 ** (levels - 1) != PIXELS:
            raise UserError(
                f"{place}: vae: {levels} levels in block_out_channels: expected 4, images of {PIXELS} times the latents' side. "
                "Fix: take the vae of the same model"
            )


def _added_conditions(x_t: Tensor, cond: Conditioning) -> dict[str, Tensor]:
    sizes = torch.zeros(len(x_t), SIZES, device=x_t.device)  # filled in place: a copy would synchronise a GPU
    sizes[:, 0::4], sizes[:, 1::4] = (PIXELS * side for side in x_t.shape[2:])
    return {"text_embeds": cond.pooled, "time_ids": sizes}


class ClipEncoders(TextEncoders):
    """Two text encoders, joined on features; the second one also returns the pooled embedding."""

    zeros = False  # true: the unconditional embedding is zero, instead of that of the empty prompt

    def encode(self, prompts: Sequence[str]) -> Conditioning:
        """Return tokens (B, L, D1 + D2), from the last hidden layer but one, and pooled (B, P), float32."""
        outputs = [encoder.evaluate(prompts, output_hidden_states=True) for encoder in self.encoders]
        tokens = torch.cat([output.hidden_states[-2] for output in outputs], dim=-1)
        return Conditioning(tokens.float(), outputs[1].text_embeds.float())

    def empty(self) -> Conditioning:
        empty = super().empty()
        return empty.map(torch.zeros_like) if self.zeros else empty

"""Load FLUX.1: a CLIP and a T5 text encoder, a transformer over 2 x 2 patches, distilled from guidance, a VAE."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import Tensor, nn

from ...method import Steps
from ...storage.files import read_json
from ..conditioning import Conditioning
from ..vae import pixels_per_latent
from .flow import JOINT_ADAPTED, FlowTransformer
from .layout import CLIP_TOKENIZER, T5_TOKENIZER, UNUSED_INDEX, TextEncoders, Usage, component_files

T5_LENGTH = 512  # tokens, as the pipeline's argument max_sequence_length
GUIDANCE = 3.5  # input of the network in every evaluation, the pipeline's default


class Flux(FlowTransformer):
    """A transformer that takes the scale of guidance as an input, and cannot be guided by an empty prompt."""

    PIPELINES = ("FluxPipeline",)
    EXPECTED = "expected FLUX.1's: a CLIP and a T5 text encoder, a FluxTransformer2DModel and an AutoencoderKL"
    INDEX = UNUSED_INDEX
    FOREIGN = ("unet", "controlnet", "text_encoder_3")
    GUIDED = False
    PATCH = 2
    CLASSES = {
        "tokenizer": CLIP_TOKENIZER,
        "tokenizer_2": T5_TOKENIZER,
        "text_encoder": ("CLIPTextModel",),
        "text_encoder_2": ("T5EncoderModel",),
        "transformer": ("FluxTransformer2DModel",),
        "vae": ("AutoencoderKL",),
    }
    SETTINGS = {
        "transformer": {"patch_size": 1, "out_channels": None},
        "vae": {"latents_mean": None, "latents_std": None},
    }
    WIDTHS = {"tokens": "joint_attention_dim", "pooled": "pooled_projection_dim"}
    WEIGHTS, CONFIGS, NEEDED = component_files(CLASSES)
    INPUT = "x_embedder.weight"
    COMPILED = SHARDED = frozenset({"FluxTransformerBlock", "FluxSingleTransformerBlock"})
    ADAPTED = (*JOINT_ADAPTED, "proj_mlp", "proj_out")

    def predict(self, x_t: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
        places = torch.zeros(*(side // self.PATCH for side in x_t.shape[2:]), 3, device=x_t.device)
        places[..., 1] += torch.arange(places.shape[0], device=x_t.device)[:, None]
        places[..., 2] += torch.arange(places.shape[1], device=x_t.device)
        guidance = torch.full_like(t, GUIDANCE) if self.network.config.guidance_embeds else None
        # diffusers' network counts time from 0 to 1
        packed = nn.functional.pixel_unshuffle(x_t, self.PATCH).flatten(2).transpose(1, 2)
        output = self.network(
            packed, cond.tokens, cond.pooled, t, places.flatten(0, 1), places.new_zeros(cond.tokens.shape[1], 3),
            guidance, return_dict=False,
        )[0]  # fmt: skip
        return nn.functional.pixel_shuffle(output.transpose(1, 2).unflatten(2, places.shape[:2]), self.PATCH)

    def blocks(self) -> Iterator[nn.Module]:
        yield from super().blocks()
        yield from self.network.single_transformer_blocks

    @classmethod
    def latent_shape(cls, folder: Path) -> tuple[int, int, int]:
        """Return (C, H, W) of the VAE's latents: the transformer's config states no size."""
        network, vae = (read_json(Path(folder) / name / "config.json") for name in (cls.NETWORK, "vae"))
        side = vae["sample_size"] // pixels_per_latent(folder)
        return network["in_channels"] // cls.PATCH**2, side, side

    @classmethod
    def noise_levels(cls, steps: int) -> list[float]:
        return np.linspace(1.0, 1 / steps, steps).tolist()

    @classmethod
    def prompt_tokens(cls, folder: Path) -> int:
        return T5_LENGTH

    @classmethod
    def exported(cls, folder: Path, steps: Steps) -> tuple[FlowMatchEulerDiscreteScheduler, Usage]:
        scheduler, usage = super().exported(folder, steps)
        return scheduler, replace(usage, guidance=GUIDANCE)

    @classmethod
    def text_encoder(cls, folder: Path) -> "ClipAndT5Encoder":
        return ClipAndT5Encoder(cls.load_encoders(folder, T5_LENGTH))


class ClipAndT5Encoder(TextEncoders):
    """T5, whose tokens the network attends to, and CLIP, whose pooled embedding it takes."""

    def encode(self, prompts: Sequence[str]) -> Conditioning:
        """Return tokens (B, L, D) of T5 and the pooled embedding (B, P) of CLIP, float32."""
        clip, t5 = (encoder.evaluate(prompts) for encoder in self.encoders)
        return Conditioning(t5.last_hidden_state.float(), clip.pooler_output.float())

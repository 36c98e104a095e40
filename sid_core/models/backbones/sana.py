"""Load SANA: Gemma-2 as text encoder, a transformer with linear attention, an autoencoder that divides sides by 32."""

import inspect
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from diffusers import AutoencoderDC, FlowMatchEulerDiscreteScheduler
from torch import Tensor

from ...method import Steps
from ...storage.files import read_json
from ..components import load_component
from ..conditioning import Conditioning
from ..vae import ImageCodec
from .flow import FlowTransformer
from .layout import Usage

if TYPE_CHECKING:
    from ..text import GemmaEncoder

LENGTH = 300  # tokens of a prompt, as the pipeline's argument max_sequence_length


class Sana(FlowTransformer):
    """A transformer whose cross-attention masks padding tokens."""

    PIPELINES = ("SanaPipeline",)
    EXPECTED = "expected SANA's: a Gemma-2 text encoder, a SanaTransformer2DModel and an AutoencoderDC"
    FOREIGN = ("unet", "controlnet", "text_encoder_2")
    CLASSES = {
        "tokenizer": ("GemmaTokenizerFast", "GemmaTokenizer"),
        "text_encoder": ("Gemma2Model", "Gemma2PreTrainedModel"),
        "transformer": ("SanaTransformer2DModel",),
        "vae": ("AutoencoderDC",),
    }
    SETTINGS = {"transformer": {"guidance_embeds": False}}  # true: SANA-Sprint, itself distilled to few steps
    WIDTHS = {"tokens": "caption_channels"}
    WEIGHTS = {
        "text_encoder": "model",
        **dict.fromkeys(("transformer", "vae"), "diffusion_pytorch_model"),
    }
    CONFIGS = {
        "tokenizer": ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"),
        **dict.fromkeys(WEIGHTS, ("config.json",)),
        "scheduler": ("scheduler_config.json",),
    }
    NEEDED = CONFIGS | {"tokenizer": ("tokenizer.json",)}
    INPUT = "patch_embed.proj.weight"
    COMPILED = SHARDED = frozenset({"SanaTransformerBlock"})

    def predict(self, x_t: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
        time = self.network.config.timestep_scale * self.schedule.network_time(t)
        return self.network(x_t, cond.tokens, time, encoder_attention_mask=cond.mask, return_dict=False)[0]

    @classmethod
    def text_encoder(cls, folder: Path) -> "GemmaEncoder":
        from diffusers import SanaPipeline
        from transformers import Gemma2Model, GemmaTokenizerFast

        from ..text import GemmaEncoder

        instruction = inspect.signature(SanaPipeline.__call__).parameters["complex_human_instruction"].default
        encoder = GemmaEncoder.from_directory(folder, "", Gemma2Model, GemmaTokenizerFast, LENGTH)
        encoder.instruction = "\n".join(instruction)
        return encoder

    @classmethod
    def image_codec(cls, folder: Path, at_once: int | None = None) -> "DeepCompressionCodec":
        return DeepCompressionCodec(load_component(AutoencoderDC, folder / "vae"), at_once)

    @classmethod
    def exported(cls, folder: Path, steps: Steps) -> tuple[FlowMatchEulerDiscreteScheduler, Usage]:
        scheduler, usage = super().exported(folder, steps)
        levels = len(read_json(folder / "vae" / "config.json")["encoder_block_out_channels"])
        height, width = (side * 2 ** (levels - 1) for side in cls.latent_shape(folder)[1:])
        # the pipeline's own size is 1024, and it may replace a size by its nearest in a table
        call = f"{usage.call}, height={height}, width={width}, use_resolution_binning=False"
        return scheduler, replace(usage, call=call)


class DeepCompressionCodec(ImageCodec):
    """The frozen autoencoder, whose encoder has no distribution of latents."""

    def mean(self, images: Tensor) -> Tensor:
        return self.vae.encode(images).latent

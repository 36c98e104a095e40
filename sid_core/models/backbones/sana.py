"""Load SANA: Gemma-2 as text encoder, a transformer with linear attention, an autoencoder that divides sides by 32."""

import inspect
from dataclasses import replace
from pathlib import Path

from diffusers import FlowMatchEulerDiscreteScheduler
from torch import Tensor

from ...method import Steps
from ..conditioning import Conditioning, Encoder
from .flow import FlowTransformer
from .layout import Usage, component_files

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
    WEIGHTS, CONFIGS, NEEDED = component_files(CLASSES)
    INPUT = "patch_embed.proj.weight"
    COMPILED = SHARDED = frozenset({"SanaTransformerBlock"})
    ADAPTED = ("to_q", "to_k", "to_v", "to_out.0", "conv_inverted", "conv_point")

    def predict(self, x_t: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
        time = self.network.config.timestep_scale * self.schedule.network_time(t)
        return self.network(x_t, cond.tokens, time, encoder_attention_mask=cond.mask, return_dict=False)[0]

    @classmethod
    def text_encoder(cls, folder: Path) -> Encoder:
        from diffusers import SanaPipeline

        instruction = inspect.signature(SanaPipeline.__call__).parameters["complex_human_instruction"].default
        (encoder,) = cls.load_encoders(folder, LENGTH, "GemmaEncoder")
        encoder.instruction = "\n".join(instruction)
        return encoder

    @classmethod
    def prompt_tokens(cls, folder: Path) -> int:
        return LENGTH

    @classmethod
    def exported(cls, folder: Path, steps: Steps) -> tuple[FlowMatchEulerDiscreteScheduler, Usage]:
        scheduler, usage = super().exported(folder, steps)
        # or the pipeline replaces a size by its nearest in a table
        return scheduler, replace(usage, call=f"{usage.call}, use_resolution_binning=False")

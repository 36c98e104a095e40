"""Load Stable Diffusion 3 and 3.5: two CLIP text encoders, a T5 encoder that may be absent, an MMDiT, a VAE."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import Tensor

from ...errors import UserError
from ...method import Steps
from ...storage.files import read_json
from ..conditioning import Conditioning
from .flow import JOINT_ADAPTED, FlowTransformer
from .layout import CLIP_TOKENIZER, T5_TOKENIZER, UNUSED_INDEX, TextEncoders, Usage, component_files

T5_LENGTH, T5_LONGEST = 256, 512  # the pipeline's argument max_sequence_length: its default and its limit


class StableDiffusion3(FlowTransformer):
    """A transformer over patches and text, conditioned on the pooled texts of both CLIP encoders.

    Without T5 the pipeline appends as many zeros as T5 would give tokens. An entry `max_sequence_length` of the teacher's
    model_index.json sets that number; 0 appends none.
    """

    PIPELINES = ("StableDiffusion3Pipeline", "StableDiffusion3Img2ImgPipeline", "StableDiffusion3InpaintPipeline")
    EXPECTED = (
        "expected Stable Diffusion 3's: two CLIP text encoders with projection, a T5 encoder or none, an "
        "SD3Transformer2DModel and an AutoencoderKL"
    )
    INDEX = UNUSED_INDEX
    FOREIGN = ("unet", "controlnet")
    OPTIONAL = ("_3",)
    CLASSES = {
        "tokenizer": CLIP_TOKENIZER,
        "tokenizer_2": CLIP_TOKENIZER,
        "tokenizer_3": T5_TOKENIZER,
        "text_encoder": ("CLIPTextModelWithProjection",),
        "text_encoder_2": ("CLIPTextModelWithProjection",),
        "text_encoder_3": ("T5EncoderModel",),
        "transformer": ("SD3Transformer2DModel",),
        "vae": ("AutoencoderKL",),
    }
    WIDTHS = {"tokens": "joint_attention_dim", "pooled": "pooled_projection_dim"}
    SETTINGS = {"vae": {"latents_mean": None, "latents_std": None}}
    WEIGHTS, CONFIGS, NEEDED = component_files(CLASSES)
    INPUT = "pos_embed.proj.weight"
    COMPILED = SHARDED = frozenset({"JointTransformerBlock"})
    ADAPTED = JOINT_ADAPTED

    def predict(self, x_t: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
        time = self.schedule.network_time(t)
        return self.network(x_t, cond.tokens, cond.pooled, time, return_dict=False)[0]

    @classmethod
    def text_encoder(cls, folder: Path) -> "ClipAndT5Encoders":
        length = t5_length(folder)
        encoder = ClipAndT5Encoders(cls.load_encoders(folder, length))
        encoder.length, encoder.width = length, read_json(folder / "transformer" / "config.json")["joint_attention_dim"]
        return encoder

    @classmethod
    def prompt_tokens(cls, folder: Path) -> int:
        return super().prompt_tokens(folder) + t5_length(folder)

    @classmethod
    def exported(cls, folder: Path, steps: Steps) -> tuple[FlowMatchEulerDiscreteScheduler, Usage]:
        scheduler, usage = super().exported(folder, steps)
        length = t5_length(folder)
        call = usage.call + (f", max_sequence_length={length}" if length != T5_LENGTH else "")
        # the pipeline takes an absent component on request only
        load = "" if (folder / "text_encoder_3").is_dir() else ", text_encoder_3=None, tokenizer_3=None"
        return scheduler, replace(usage, call=call, load=load)

    @classmethod
    def check_configs(cls, folder: Path, place: str) -> None:
        super().check_configs(folder, place)
        network = read_json(folder / "transformer" / "config.json")
        channels = network.get("out_channels") or network["in_channels"]
        cls._expect(f"{place}: transformer", network, "in_channels", (channels,))
        texts = [read_json(folder / name / "config.json") for name in ("text_encoder", "text_encoder_2")]
        width, joint = sum(text.get("hidden_size", 512) for text in texts), network["joint_attention_dim"]
        if width > joint:  # 512 is transformers' default
            raise UserError(
                f"{place}: text_encoder and text_encoder_2 give {width} values a token, transformer expects at most {joint}; they "
                "do not belong together. Fix: take the text encoders of the same model"
            )
        length = t5_length(folder)
        if not isinstance(length, int) or not 0 <= length <= T5_LONGEST:
            raise UserError(
                f"{place}: model_index.json: max_sequence_length={length}: expected 0 to {T5_LONGEST} tokens of T5. "
                f"Fix: omit it, which is {T5_LENGTH}"
            )


def t5_length(folder: Path) -> int:
    """Return the number of T5's tokens that follow those of CLIP."""
    return read_json(folder / "model_index.json").get("max_sequence_length", T5_LENGTH)


class ClipAndT5Encoders(TextEncoders):
    """Two CLIP encoders joined on features, padded to the width of T5 and joined with it on tokens.

    Without T5, `length` rows of `width` zeros are in its place.
    """

    length, width = 0, 0

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> Conditioning:
        """Return tokens (B, L, D), from the last hidden layer but one of CLIP, and both pooled (B, P), float32."""
        outputs = [encoder.evaluate(prompts, output_hidden_states=True) for encoder in self.encoders[:2]]
        clip = torch.cat([output.hidden_states[-2] for output in outputs], dim=-1).float()
        pooled = torch.cat([output.text_embeds for output in outputs], dim=-1).float()
        if len(self.encoders) > 2:
            rest = self.encoders[2].evaluate(prompts).last_hidden_state.float()
        else:
            rest = clip.new_zeros(len(clip), self.length, self.width)
        clip = F.pad(clip, (0, rest.shape[-1] - clip.shape[-1]))
        return Conditioning(torch.cat([clip, rest], dim=1), pooled)

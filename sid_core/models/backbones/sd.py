"""Load Stable Diffusion 1.x and 2.x: a CLIP text encoder, UNet2DConditionModel, AutoencoderKL, discrete DDPM schedule."""

import logging
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Self

import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler
from torch import Tensor, nn

from ...cluster.machine import device
from ...errors import UserError
from ...method import Steps
from ...storage.files import read_json, write_json
from ..conditioning import Conditioning, Encoder
from ..scheduler import euler_scheduler, make_solver, noise_schedule, prediction_type, scheduler_config
from .base import Backbone
from .layout import CLIP_TOKENIZER, UNUSED_INDEX, DiffusersLayout, Usage, component_files
from .prediction import choose_type, x0_errors
from .shared_prefix import check_shared_prefix, decode, encode, guided_pair, shares_prefix, time_embedding

log = logging.getLogger(__name__)

TIMESTEPS = 1000  # t_init, t_min, t_max and the epsilon-prediction error refer to these


class StableDiffusion(DiffusersLayout):
    """A UNet with one text encoder."""

    PIPELINES = ("StableDiffusionPipeline",)
    EXPECTED = "expected Stable Diffusion's: one CLIP text encoder, a UNet2DConditionModel and an AutoencoderKL"
    INDEX = UNUSED_INDEX | {"requires_safety_checker": False, "safety_checker": [None, None]}
    FOREIGN = ("text_encoder_2", "text_encoder_3", "tokenizer_2", "tokenizer_3", "transformer")
    NETWORK = "unet"
    CLASSES = {
        "tokenizer": CLIP_TOKENIZER,
        "text_encoder": ("CLIPTextModel",),
        "unet": ("UNet2DConditionModel",),
        "vae": ("AutoencoderKL",),
    }
    # a UNet's inputs beside latents, timestep and text; a VAE whose latents are not just z * scaling_factor
    SETTINGS = {
        "unet": {
            "addition_embed_type": None, "class_embed_type": None, "num_class_embeds": None, "encoder_hid_dim": None,
            "encoder_hid_dim_type": None, "time_cond_proj_dim": None, "attention_type": "default",
        },
        "vae": {"shift_factor": None, "latents_mean": None, "latents_std": None},
    }  # fmt: skip
    WIDTHS = {"tokens": "cross_attention_dim"}
    WEIGHTS, CONFIGS, NEEDED = component_files(CLASSES)
    COMPILED = frozenset({"ResnetBlock2D", "BasicTransformerBlock"})
    # nearly all weights, in modules that `guided_pair` calls as a whole: FSDP's hooks run
    SHARDED = frozenset({"ResnetBlock2D", "Attention", "FeedForward"})
    # attention, feed-forward and convolutions of all blocks, as LCM-LoRA and DMD2 adapt
    ADAPTED = (
        "to_q", "to_k", "to_v", "to_out.0", "proj_in", "proj_out", "ff.net.0.proj", "ff.net.2",
        "conv1", "conv2", "conv_shortcut", "time_emb_proj", "downsamplers.0.conv", "upsamplers.0.conv",
    )  # fmt: skip
    # diffusers registers mid_block after up_blocks; modules missing here come first
    BACKWARD_ORDER = {"mid_block": 1, "down_blocks": 2, "time_embedding": 3, "conv_in": 3}

    def predict(self, x_t: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
        return self.network(x_t, t, encoder_hidden_states=cond.tokens).sample

    def predict_pair(self, x_t: Tensor, t: Tensor, uncond: Conditioning, cond: Conditioning) -> Tensor:
        return guided_pair(self.network, x_t, t, uncond.tokens, cond.tokens)

    def predict_with_logits(self, x_t: Tensor, t: Tensor, cond: Conditioning) -> tuple[Tensor, Tensor]:
        """Return the outputs, and the mean over channels of the mid block's output (arXiv 2410.14919), (B, h, w)."""
        x, emb = self.embed(x_t, t, cond)
        h, skips = encode(self.network, x, emb, cond.tokens)
        return decode(self.network, h, skips, emb, cond.tokens), h[-len(x_t) :].float().mean(dim=1)

    def predict_logits(self, x_t: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
        return encode(self.network, *self.embed(x_t, t, cond), cond.tokens)[0].float().mean(dim=1)

    def separable(self) -> bool:
        """Return whether `encode` and `decode` compute what the network does."""
        return shares_prefix(self.network)

    def embed(self, x_t: Tensor, t: Tensor, cond: Conditioning) -> tuple[Tensor, Tensor]:
        """Return x_t and the embedding of t, for `encode`."""
        return x_t, time_embedding(self.network, x_t, t)

    def check_discriminator(self) -> None:
        if not self.separable():
            raise UserError(
                "adversarial: expected a UNet of Stable Diffusion's blocks, whose encoder can be evaluated alone. "
                "Fix: remove it, or use another teacher"
            )

    def blocks(self) -> Iterator[nn.Module]:
        unet = self.network
        for level in filter(None, (*unet.down_blocks, unet.mid_block, *unet.up_blocks)):  # a UNet may have no middle
            yield from level.resnets
            yield from getattr(level, "attentions", None) or ()

    @classmethod
    def load_network(cls, weights: Path, teacher: Path) -> Self:
        config, unet = scheduler_config(teacher), cls.load_component("unet", weights)
        check_shared_prefix(unet)
        return cls(unet, noise_schedule(config), prediction_type(config)).frozen()

    @classmethod
    def text_encoder(cls, folder: Path) -> Encoder:
        return cls.load_encoders(folder)[0]

    @classmethod
    def solver(cls, name: str, folder: Path, steps: int) -> DDIMScheduler | DPMSolverMultistepScheduler:
        solver = make_solver(name, folder, steps)
        solver.register_to_config(prediction_type="sample")  # its input is x_0, for any prediction type
        return solver

    @classmethod
    def exported(cls, folder: Path, steps: Steps) -> tuple[EulerDiscreteScheduler, Usage]:
        times = noise_schedule(scheduler_config(folder)).steps(steps.t_init, steps.count)
        call = "num_inference_steps=1" if steps.count == 1 else f"timesteps={times}"
        return euler_scheduler(folder, steps.t_init), Usage(call)

    @classmethod
    def check_configs(cls, folder: Path, place: str) -> None:
        super().check_configs(folder, place)
        unet = read_json(folder / "unet" / "config.json")
        channels = unet.get("out_channels", 4)
        if unet.get("in_channels", 4) == 2 * channels + 1:
            raise UserError(
                f"{place}: unet: in_channels={2 * channels + 1}: expected {channels}; an inpainting UNet takes a mask and a "
                "masked image too. Fix: give the text-to-image model"
            )
        cls._expect(f"{place}: unet", unet, "out_channels", (unet.get("in_channels", 4),), missing=4)
        if not isinstance(unet.get("cross_attention_dim", 1280), int):
            raise UserError(f"{place}: unet: cross_attention_dim={unet['cross_attention_dim']}: expected one number")

    @classmethod
    def check(cls, folder: Path, place: str) -> dict:
        """Load the fetched components, check that they fit the method and each other, and fill gaps in their configs.

        Returns:
            For provenance.json: the tokens of a prompt, and the prediction type, stated or measured.
        """
        config = scheduler_config(folder)
        steps = len(noise_schedule(config))
        if steps != TIMESTEPS:
            raise UserError(
                f"{place}: scheduler: num_train_timesteps={steps}: expected {TIMESTEPS}, to which t_init, t_min and t_max "
                "refer. Fix: give a teacher of such a schedule"
            )
        backbone, encoder, found = cls.check_components(folder, place)
        return found | {"prediction_type": _resolve_prediction_type(folder, backbone, encoder.empty(), place)}


def _resolve_prediction_type(folder: Path, backbone: Backbone, empty: Conditioning, place: str) -> dict:
    """Return the scheduler's prediction type; a missing one is measured and written into the prepared copy."""
    config = scheduler_config(folder)
    if config.get("prediction_type") is not None:
        return {"value": prediction_type(config), "stated": True}
    where = torch.device(device())
    log.info("%s: the scheduler states no prediction_type; measuring it", place)
    errors = x0_errors(backbone.to(where), empty.to_device(where), backbone.latent_shape(folder))
    found, shown = choose_type(errors), ", ".join(f"{kind} {error:.2g}" for kind, error in errors.items())
    if found is None:
        raise UserError(
            f"{place}: scheduler: prediction_type is not stated, and the x_0 errors of the teacher on its own samples show "
            f"neither ({shown}; expected one below 0.5 and half of the other). Fix: set it to epsilon or v_prediction in "
            "scheduler/scheduler_config.json of a local copy"
        )
    log.info("%s: prediction_type=%s by relative x_0 errors on its own samples (%s)", place, found, shown)
    write_json(folder / "scheduler" / "scheduler_config.json", config | {"prediction_type": found})
    finite = {kind: error if math.isfinite(error) else None for kind, error in errors.items()}
    return {"value": found, "stated": False, "x0_errors": finite}

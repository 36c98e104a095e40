"""Build networks of random weights by name, for measurements that need a teacher's architecture alone.

Nothing is downloaded. Weights are not zero: multiplying zeros takes a GPU less power, hence less time, than training.
"""

import math
from dataclasses import dataclass, field
from pathlib import Path

import diffusers
import torch
from diffusers import ModelMixin
from safetensors import safe_open

from ..data import shapes
from ..errors import UserError
from ..method.schedule import FlowSchedule
from ..storage.files import read_json
from .backbones import (
    FAMILIES,
    Backbone,
    StableDiffusion,
    StableDiffusion3,
    StableDiffusionXL,
    expect_family,
    family_of,
)
from .backbones.flow import FlowTransformer
from .backbones.flux import T5_LENGTH, Flux
from .backbones.layout import DiffusersLayout
from .backbones.sana import LENGTH, Sana
from .backbones.sdxl import SIZES
from .scheduler import noise_schedule, prediction_type, scheduler_config
from .vae import AT_ONCE, ImageCodec

SCHEDULER = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "prediction_type": "epsilon"}
SD21 = {"cross_attention_dim": 1024, "attention_head_dim": [5, 10, 20, 20], "use_linear_projection": True}
VAE = {
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "block_out_channels": [128, 256, 512, 512],
    "layers_per_block": 2,
}
VAE_16 = VAE | {"latent_channels": 16, "use_quant_conv": False, "use_post_quant_conv": False}
# of SANA: an autoencoder that divides sides by 32
DC_AE = {
    **dict.fromkeys(("encoder_block_types", "decoder_block_types"), ["ResBlock"] * 3 + ["EfficientViTBlock"] * 3),
    "upsample_block_type": "interpolate",
    "downsample_block_type": "Conv",
}
# parameters of the text encoders
CLIP_L, OPEN_CLIP_H, OPEN_CLIP_G = 123_060_480, 340_387_840, 694_659_840
CLIP_L_PROJECTED, T5_XXL, GEMMA_2 = 123_650_304, 4_762_310_656, 2_614_341_888


@dataclass(frozen=True)
class Architecture:
    """The properties of a teacher that determine time and memory of a step."""

    family: type[DiffusersLayout]
    network: dict  # config of the diffusion network
    latent_shape: tuple[int, int, int]  # (C, H, W)
    tokens: int  # of a prompt
    text_parameters: int  # of the text encoders
    scheduler: dict = field(default_factory=lambda: SCHEDULER)  # unused with flow matching
    vae: dict = field(default_factory=lambda: VAE)  # config of the autoencoder

    @property
    def text_shape(self) -> tuple[int, int]:
        """Return (L, D), tokens of a prompt and their width."""
        return self.tokens, self.network[self.family.WIDTHS["tokens"]]

    @property
    def pooled(self) -> int | None:
        """Return the width of the pooled embedding, None for a family without."""
        if key := self.family.WIDTHS.get("pooled"):
            return self.network[key]
        width = self.network.get("projection_class_embeddings_input_dim")
        return width and width - SIZES * self.network["addition_time_embed_dim"]


ARCHITECTURES = {
    "sd15": Architecture(
        StableDiffusion, {"cross_attention_dim": 768, "attention_head_dim": 8}, (4, 64, 64), 77, CLIP_L
    ),
    "sd21-base": Architecture(StableDiffusion, SD21, (4, 64, 64), 77, OPEN_CLIP_H),
    "sd21-768": Architecture(
        StableDiffusion, SD21, (4, 96, 96), 77, OPEN_CLIP_H, SCHEDULER | {"prediction_type": "v_prediction"}
    ),
    "sdxl": Architecture(
        StableDiffusionXL,
        {
            "block_out_channels": [320, 640, 1280],
            "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
            "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
            "transformer_layers_per_block": [1, 2, 10],
            "cross_attention_dim": 2048,
            "attention_head_dim": [5, 10, 20],
            "use_linear_projection": True,
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 256,
            "projection_class_embeddings_input_dim": 2816,
        },
        (4, 128, 128),
        77,
        CLIP_L + OPEN_CLIP_G,
    ),
    "sd35-medium": Architecture(
        StableDiffusion3,
        {
            "sample_size": 128,
            "num_layers": 24,
            "attention_head_dim": 64,
            "num_attention_heads": 24,
            "joint_attention_dim": 4096,
            "caption_projection_dim": 1536,
            "pooled_projection_dim": 2048,
            "pos_embed_max_size": 384,
            "dual_attention_layers": list(range(13)),
            "qk_norm": "rms_norm",
        },
        (16, 128, 128),
        77 + 256,
        CLIP_L_PROJECTED + OPEN_CLIP_G + T5_XXL,
        vae=VAE_16,
    ),
    "sana-600m": Architecture(
        Sana,
        {
            "num_layers": 28,
            "num_attention_heads": 36,
            "num_cross_attention_heads": 16,
            "cross_attention_head_dim": 72,
            "cross_attention_dim": 1152,
            "caption_channels": 2304,
        },
        (32, 32, 32),
        LENGTH,
        GEMMA_2,
        vae=DC_AE,
    ),
    "flux-dev": Architecture(
        Flux,
        {"guidance_embeds": True, "joint_attention_dim": 4096, "pooled_projection_dim": 768},
        (16, 128, 128),
        T5_LENGTH,
        CLIP_L + T5_XXL,
        vae=VAE_16,
    ),
    # a small network of Stable Diffusion's blocks: attention on one level of two
    "small": Architecture(
        StableDiffusion,
        {
            "block_out_channels": [32, 64],
            "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
            "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
            "cross_attention_dim": 32,
            "attention_head_dim": 4,
            "norm_num_groups": 8,
        },
        (4, 8, 8),
        16,
        0,
        vae=VAE | {"block_out_channels": [32, 32, 32, 32]},
    ),
}


def from_name(name: str) -> Architecture:
    """Return an architecture of ARCHITECTURES, or of shapes (the embedded teacher)."""
    if name == "shapes":
        return from_directory(shapes.ASSETS / "teacher")
    if name not in ARCHITECTURES:
        raise UserError(f"size={name}: expected {', '.join(ARCHITECTURES)} or shapes")
    return ARCHITECTURES[name]


def from_directory(folder: Path) -> Architecture:
    """Return the architecture of a teacher directory, without reading its weights."""
    folder = Path(folder)
    expect_family(folder, *(family for family in FAMILIES if issubclass(family, DiffusersLayout)))
    family, parameters = family_of(folder), 0
    for encoder in family.encoder_names(folder):
        weights = folder / encoder / "model.safetensors"
        if not weights.is_file():
            raise UserError(f"--teacher {folder}: no {encoder}/{weights.name}. Fix: give a prepared teacher")
        with safe_open(weights, "pt") as file:
            names = file.keys()
            parameters += sum(math.prod(file.get_slice(name).get_shape()) for name in names)
    network, vae = (
        {key: value for key, value in read_json(folder / name / "config.json").items() if not key.startswith("_")}
        for name in (family.NETWORK, "vae")
    )
    scheduler, latents = scheduler_config(folder), family.latent_shape(folder)
    return Architecture(family, network, latents, family.prompt_tokens(folder), parameters, scheduler, vae)


def new_backbone(architecture: Architecture, device: str | torch.device, seed: int = 0) -> Backbone:
    """Make a Backbone of random float32 weights; on the device `meta` it has shapes and no data."""
    network = new_network(architecture, device, seed)
    if issubclass(architecture.family, FlowTransformer):
        return architecture.family(network, FlowSchedule(), "flow").eval()
    schedule = noise_schedule(architecture.scheduler).to(device)
    return architecture.family(network, schedule, prediction_type(architecture.scheduler)).eval()


def new_codec(architecture: Architecture) -> ImageCodec:
    """Make the VAE of training's sample grids, on the default device."""
    return ImageCodec(_kind(architecture, "vae")(**architecture.vae), AT_ONCE)


def new_network(architecture: Architecture, device: str | torch.device, seed: int = 0) -> ModelMixin:
    """Make a diffusion network of random weights on a device: equal weights for an equal seed and device."""
    device = torch.device(device)
    with torch.device("meta"):
        network = _kind(architecture, architecture.family.NETWORK)(**architecture.network)
    if device.type == "meta":
        return network
    generator = torch.Generator(device).manual_seed(seed)
    network.to_empty(device=device)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            parameter.normal_(generator=generator)
            if parameter.ndim > 1:
                parameter.mul_(parameter[0].numel() ** -0.5)  # outputs as large as inputs
            else:
                parameter.mul_(0.1).add_(0.0 if name.endswith("bias") else 1.0)
        for buffer in network.buffers():  # embeddings of positions
            buffer.normal_(generator=generator)
    return network


def _kind(architecture: Architecture, component: str) -> type[ModelMixin]:
    return getattr(diffusers, architecture.family.CLASSES[component][0])

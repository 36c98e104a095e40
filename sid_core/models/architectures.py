"""Build networks of random weights by name, for measurements that need a teacher's architecture alone.

Nothing is downloaded. Weights are not zero: multiplying zeros takes a GPU less power, hence less time, than training.
"""

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import UNet2DConditionModel
from safetensors import safe_open

from ..data import shapes
from ..errors import UserError
from ..storage.files import read_json
from .backbones import Backbone, StableDiffusion, StableDiffusionXL, expect_family, family_of
from .backbones.sdxl import SIZES
from .scheduler import noise_schedule, prediction_type, scheduler_config
from .vae import AT_ONCE, AutoencoderKL, ImageCodec

SCHEDULER = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
SD21 = {"cross_attention_dim": 1024, "attention_head_dim": [5, 10, 20, 20], "use_linear_projection": True}
VAE = {
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "block_out_channels": [128, 256, 512, 512],
    "layers_per_block": 2,
}
CLIP_L, OPEN_CLIP_H, OPEN_CLIP_G = 123_060_480, 340_387_840, 694_659_840  # parameters of the text encoders
UNETS = {
    "sd15": {"sample_size": 64, "cross_attention_dim": 768, "attention_head_dim": 8},
    "sd21-base": {"sample_size": 64} | SD21,
    "sd21-768": {"sample_size": 96} | SD21,
    "sdxl": {
        "sample_size": 128,
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
    # a small network of Stable Diffusion's blocks: attention on one level of two
    "small": {
        "sample_size": 8,
        "block_out_channels": [32, 64],
        "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
        "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
        "cross_attention_dim": 32,
        "attention_head_dim": 4,
        "norm_num_groups": 8,
    },
}


@dataclass(frozen=True)
class Architecture:
    """The properties of a teacher that determine time and memory of a step."""

    unet: dict  # config of a UNet2DConditionModel
    scheduler: dict
    latent_shape: tuple[int, int, int]  # (C, H, W)
    text_shape: tuple[int, int]  # (L, D), tokens of a prompt and their width
    text_parameters: int  # of the text encoders
    vae: dict  # config of an AutoencoderKL

    @property
    def pooled(self) -> int | None:
        """Return the width of SDXL's pooled embedding, None for Stable Diffusion."""
        width = self.unet.get("projection_class_embeddings_input_dim")
        return width and width - SIZES * self.unet["addition_time_embed_dim"]


def from_name(name: str) -> Architecture:
    """Return the architecture of sd15, sd21-base, sd21-768, sdxl, small, or shapes (the embedded teacher)."""
    if name == "shapes":
        return from_directory(shapes.ASSETS / "teacher")
    if name not in UNETS:
        raise UserError(f"size={name}: expected {', '.join(UNETS)} or shapes")
    unet = UNETS[name]
    text_parameters = {"small": 0, "sd15": CLIP_L, "sdxl": CLIP_L + OPEN_CLIP_G}.get(name, OPEN_CLIP_H)
    length = 16 if name == "small" else 77
    prediction = "v_prediction" if name == "sd21-768" else "epsilon"
    size = unet["sample_size"]
    return Architecture(
        unet, SCHEDULER | {"prediction_type": prediction}, (4, size, size), (length, unet["cross_attention_dim"]), text_parameters,
        VAE | ({"block_out_channels": [32, 32, 32, 32]} if name == "small" else {}),
    )  # fmt: skip


def from_directory(folder: Path) -> Architecture:
    """Return the architecture of a teacher directory, without reading its weights."""
    from .teacher import latent_shape  # needs transformers, which training on random weights does not

    folder = Path(folder)
    expect_family(folder, StableDiffusion, StableDiffusionXL)
    unet, text = read_json(folder / "unet" / "config.json"), read_json(folder / "text_encoder" / "config.json")
    text_shape = text["max_position_embeddings"], unet["cross_attention_dim"]
    parameters = 0
    for encoder in family_of(folder).encoder_names(folder):
        weights = folder / encoder / "model.safetensors"
        if not weights.is_file():
            raise UserError(f"--teacher {folder}: no {encoder}/{weights.name}. Fix: give a prepared teacher")
        with safe_open(weights, "pt") as file:
            names = file.keys()
            parameters += sum(math.prod(file.get_slice(name).get_shape()) for name in names)
    vae = read_json(folder / "vae" / "config.json")
    unet, vae = ({key: config[key] for key in config if not key.startswith("_")} for config in (unet, vae))
    return Architecture(unet, scheduler_config(folder), latent_shape(folder), text_shape, parameters, vae)


def new_backbone(architecture: Architecture, device: str | torch.device, seed: int = 0) -> Backbone:
    """Make a Backbone of random float32 weights; on the device `meta` it has shapes and no data."""
    schedule = noise_schedule(architecture.scheduler).to(device)
    family = StableDiffusionXL if architecture.pooled else StableDiffusion
    return family(new_unet(architecture, device, seed), schedule, prediction_type(architecture.scheduler)).eval()


def new_codec(architecture: Architecture) -> ImageCodec:
    """Make the VAE of training's sample grids, on the default device."""
    return ImageCodec(AutoencoderKL(**architecture.vae), AT_ONCE)


def new_unet(architecture: Architecture, device: str | torch.device, seed: int = 0) -> UNet2DConditionModel:
    """Make a UNet of random weights on a device: equal weights for an equal seed and device."""
    device = torch.device(device)
    with torch.device("meta"):
        unet = UNet2DConditionModel(**architecture.unet)
    if device.type == "meta":
        return unet
    generator = torch.Generator(device).manual_seed(seed)
    unet.to_empty(device=device)
    with torch.no_grad():
        for name, parameter in unet.named_parameters():
            parameter.normal_(generator=generator)
            if parameter.ndim > 1:
                parameter.mul_(parameter[0].numel() ** -0.5)  # outputs as large as inputs
            else:
                parameter.mul_(0.1).add_(0.0 if name.endswith("bias") else 1.0)
    return unet

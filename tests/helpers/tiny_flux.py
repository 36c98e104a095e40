"""Write a tiny FLUX.1 of random weights with diffusers' own classes, in the layout of its repository."""

from pathlib import Path

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
from tiny_sd3 import new_t5, new_vae
from tiny_sdxl import new_clip, sharpen
from transformers import CLIPTextModel

WIDTH, JOINT = 8, 16


def new_pipeline() -> FluxPipeline:
    """Make the pipeline: 4 x 8 x 8 latents, 64 x 64 images, 512 tokens of T5, the scheduler with a dynamic shift."""
    torch.manual_seed(0)
    clip = new_clip((WIDTH, WIDTH), WIDTH, (CLIPTextModel, CLIPTextModel))
    parts = {name: clip[name] for name in ("tokenizer", "text_encoder")}
    parts |= {f"{name}_2": part for name, part in new_t5(JOINT).items()}
    parts["transformer"] = FluxTransformer2DModel(
        in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=8, num_attention_heads=2,
        joint_attention_dim=JOINT, pooled_projection_dim=WIDTH, guidance_embeds=True, axes_dims_rope=(2, 2, 4),
    )  # fmt: skip
    parts["vae"] = new_vae(0.3611, 0.1159)
    sharpen(parts)
    parts["scheduler"] = FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True)
    return FluxPipeline(**parts)


def write_teacher(folder: Path) -> Path:
    """Write the pipeline as diffusers does."""
    new_pipeline().save_pretrained(folder)
    return folder

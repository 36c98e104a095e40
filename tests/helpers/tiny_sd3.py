"""Write a tiny Stable Diffusion 3 of random weights with diffusers' own classes, in the layout of its repository."""

from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)
from tiny_sdxl import new_clip, sharpen
from transformers import CLIPTextModelWithProjection, T5Config, T5EncoderModel, T5TokenizerFast

WIDTHS, POOLED, JOINT = (8, 16), 12, 32
T5_TOKENS = 20


def new_vae(scale: float, shift: float) -> AutoencoderKL:
    """Make a VAE of 64 x 64 images without quant convolutions."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(8,) * 4, layers_per_block=1, latent_channels=4, norm_num_groups=4, sample_size=64,
        mid_block_add_attention=False, scaling_factor=scale, shift_factor=shift, force_upcast=True,
        use_quant_conv=False, use_post_quant_conv=False,
    )  # fmt: skip


def new_t5(width: int) -> dict[str, object]:
    """Make a T5 encoder and its tokenizer, which knows single characters."""
    pieces = [
        ("<pad>", 0.0),
        ("</s>", 0.0),
        ("<unk>", 0.0),
        *((c, -1.0) for c in "▁abcdefghijklmnopqrstuvwxyz0123456789"),
    ]
    config = T5Config(
        vocab_size=len(pieces), d_model=width, d_kv=8, d_ff=32, num_layers=2, num_heads=2, dropout_rate=0.0,
        pad_token_id=0, eos_token_id=1, decoder_start_token_id=0,
    )  # fmt: skip
    return {
        "tokenizer": T5TokenizerFast(vocab=pieces, extra_ids=0, model_max_length=512),
        "text_encoder": T5EncoderModel(config),
    }


def new_pipeline(t5: bool = True, **scheduler: object) -> StableDiffusion3Pipeline:
    """Make the pipeline: 4 x 8 x 8 latents, 64 x 64 images, 12 tokens of CLIP, a VAE with a shift and no quant convolutions."""
    torch.manual_seed(0)
    parts = new_clip(WIDTHS, POOLED, (CLIPTextModelWithProjection,) * 2)
    parts |= {f"{name}_3": part if t5 else None for name, part in new_t5(JOINT).items()}
    parts["transformer"] = SD3Transformer2DModel(
        sample_size=8, patch_size=2, in_channels=4, out_channels=4, num_layers=3, attention_head_dim=8,
        num_attention_heads=2, joint_attention_dim=JOINT, caption_projection_dim=16, pooled_projection_dim=2 * POOLED,
        pos_embed_max_size=16, dual_attention_layers=(0,), qk_norm="rms_norm",
    )  # fmt: skip
    parts["vae"] = new_vae(1.5305, 0.0609)
    sharpen(parts)
    parts["scheduler"] = FlowMatchEulerDiscreteScheduler(**{"shift": 3.0} | scheduler)
    return StableDiffusion3Pipeline(**parts)


def write_teacher(folder: Path, t5: bool = True, **scheduler: object) -> Path:
    """Write the pipeline as diffusers does."""
    new_pipeline(t5, **scheduler).save_pretrained(folder)
    return folder

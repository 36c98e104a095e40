"""Write a tiny Stable Diffusion XL of random weights with diffusers' own classes, in the layout of its repository."""

import string
from pathlib import Path

import torch
from diffusers import AutoencoderKL, EulerDiscreteScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

WIDTHS, POOLED, SIZE_WIDTH, TOKENS = (8, 16), 12, 4, 12
BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def new_clip(widths: tuple[int, int], pooled: int, kinds: tuple[type, type]) -> dict[str, object]:
    """Make two CLIP text encoders with their tokenizers, of 12 tokens."""
    letters = list(string.ascii_lowercase + string.digits)
    words = ["!", *letters, *(f"{c}</w>" for c in letters), "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {word: i for i, word in enumerate(words)}
    pads = {"tokenizer": {}, "tokenizer_2": {"pad_token": "!"}}  # as in the repository
    parts = {
        name: CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=TOKENS, **pad) for name, pad in pads.items()
    }
    configs = [
        CLIPTextConfig(
            vocab_size=len(words), hidden_size=width, intermediate_size=4 * width, projection_dim=pooled, hidden_act=act,
            num_hidden_layers=3, num_attention_heads=2, max_position_embeddings=TOKENS,
            bos_token_id=len(words) - 2, eos_token_id=len(words) - 1, pad_token_id=pad,
        )
        for width, act, pad in zip(widths, ("quick_gelu", "gelu"), (len(words) - 1, 0), strict=True)
    ]  # fmt: skip
    return parts | {"text_encoder": kinds[0](configs[0]), "text_encoder_2": kinds[1](configs[1])}


def sharpen(parts: dict[str, object]) -> None:
    """Scale weights up: at torch's scale, prompts would hardly change an image."""
    for part in parts.values():
        for name, weights in part.named_parameters() if isinstance(part, torch.nn.Module) else ():
            if weights.ndim > 1:
                weights.data *= 3 if "embed" in name else 1.5


def new_pipeline(force_zeros: bool = True, **scheduler: object) -> StableDiffusionXLPipeline:
    """Make the pipeline: 4 x 8 x 8 latents, 64 x 64 images, 12 tokens of width 24, a pooled embedding of width 12."""
    torch.manual_seed(0)
    parts = new_clip(WIDTHS, POOLED, (CLIPTextModel, CLIPTextModelWithProjection))
    parts["unet"] = UNet2DConditionModel(
        sample_size=8, block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 2), attention_head_dim=(1, 2), use_linear_projection=True,
        cross_attention_dim=sum(WIDTHS), addition_embed_type="text_time", addition_time_embed_dim=SIZE_WIDTH,
        projection_class_embeddings_input_dim=POOLED + 6 * SIZE_WIDTH,
    )  # fmt: skip
    parts["vae"] = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(8,) * 4, layers_per_block=1, latent_channels=4, norm_num_groups=4, sample_size=64,
        mid_block_add_attention=False, scaling_factor=0.13025, force_upcast=True,
    )  # fmt: skip
    sharpen(parts)
    parts["scheduler"] = EulerDiscreteScheduler(**BETAS, timestep_spacing="leading", steps_offset=1, **scheduler)
    return StableDiffusionXLPipeline(**parts, force_zeros_for_empty_prompt=force_zeros, add_watermarker=False)


def write_teacher(folder: Path, force_zeros: bool = True, **scheduler: object) -> Path:
    """Write the pipeline as diffusers does."""
    new_pipeline(force_zeros, **scheduler).save_pretrained(folder)
    return folder

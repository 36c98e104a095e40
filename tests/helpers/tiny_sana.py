"""Write a tiny SANA of random weights with diffusers' own classes, in the layout of its repository."""

from pathlib import Path

import torch
from diffusers import AutoencoderDC, DPMSolverMultistepScheduler, SanaPipeline, SanaTransformer2DModel
from tiny_sdxl import sharpen
from transformers import Gemma2Config, Gemma2Model, GemmaTokenizerFast

WIDTH = 16


def new_pipeline() -> SanaPipeline:
    """Make the pipeline: 4 x 8 x 8 latents, 32 x 32 images, prompts of 300 characters."""
    torch.manual_seed(0)
    words = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", *(chr(i) for i in range(33, 127)), "▁"]
    parts = {"tokenizer": GemmaTokenizerFast(vocab={word: i for i, word in enumerate(words)}, merges=[])}
    config = Gemma2Config(
        vocab_size=len(words), hidden_size=WIDTH, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=8, max_position_embeddings=4096, sliding_window=64,
    )  # fmt: skip
    parts["text_encoder"] = Gemma2Model(config)
    parts["transformer"] = SanaTransformer2DModel(
        in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=8, num_layers=2,
        num_cross_attention_heads=2, cross_attention_head_dim=8, cross_attention_dim=16, caption_channels=WIDTH,
        sample_size=8, patch_size=1,
    )  # fmt: skip
    parts["vae"] = AutoencoderDC(
        latent_channels=4, attention_head_dim=2, encoder_block_types=("ResBlock", "ResBlock", "EfficientViTBlock"),
        decoder_block_types=("ResBlock", "ResBlock", "EfficientViTBlock"), encoder_block_out_channels=(8, 8, 8),
        decoder_block_out_channels=(8, 8, 8), encoder_layers_per_block=(1, 1, 1), decoder_layers_per_block=(1, 1, 1),
        encoder_qkv_multiscales=((), (), (5,)), decoder_qkv_multiscales=((), (), (5,)), scaling_factor=0.41407,
    )  # fmt: skip
    sharpen(parts)
    flow = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0}
    parts["scheduler"] = DPMSolverMultistepScheduler(**flow)
    return SanaPipeline(**parts)


def write_teacher(folder: Path) -> Path:
    """Write the pipeline as diffusers does."""
    new_pipeline().save_pretrained(folder)
    return folder

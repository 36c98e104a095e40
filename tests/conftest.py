"""Fixtures shared by all tests: a tiny random teacher in the diffusers layout, made in a second."""

import string
from pathlib import Path

import pytest
import torch


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_teacher_source(tmp_path_factory) -> Path:
    """A diffusers directory with random weights: 4 x 8 x 8 latents, 16 x 16 images, 12 tokens of width 16."""
    from sid_core.models import build

    folder = tmp_path_factory.mktemp("source") / "teacher"
    letters = list(string.ascii_lowercase + string.digits)
    tokens = letters + [f"{c}</w>" for c in letters] + ["<|startoftext|>", "<|endoftext|>"]
    torch.manual_seed(0)
    parts = {
        "tokenizer": build.new_tokenizer({token: i for i, token in enumerate(tokens)}, [], 12),
        "text_encoder": build.new_text_encoder(width=16, layers=1, heads=2, vocabulary=len(tokens), length=12),
        "unet": build.new_unet((16, 16), latent_channels=4, latent_size=8, text_width=16),
        "vae": build.new_vae((8, 8), latent_channels=4, image_size=16),
        "scheduler": build.new_scheduler(),
    }
    for name, part in parts.items():
        part.save_pretrained(folder / name)
    build.write_model_index(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_teacher(tiny_teacher_source, tmp_path_factory) -> Path:
    """The same after the teacher stage: with provenance and manifest."""
    from sid_core.config import Teacher
    from sid_core.models.teacher import prepare_teacher

    out = tmp_path_factory.mktemp("results") / "teacher"
    prepare_teacher(Teacher(source="local", path=str(tiny_teacher_source)), out)
    return out

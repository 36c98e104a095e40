"""A distillation of the tiny teacher that takes seconds."""

import os
from types import SimpleNamespace

import pytest
from small_run import PROMPTS, make_settings

os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"  # read once, by whichever test is the first on a GPU


@pytest.fixture
def folders(tmp_path):
    return SimpleNamespace(state=tmp_path / "state", out=tmp_path / "run" / "generator")


@pytest.fixture
def make_trainer(tiny_teacher):
    from sid_core.models.teacher import latent_shape, load_denoiser
    from sid_core.models.text import PromptSet, TextEncoder
    from sid_core.training.iteration import Trainer

    def make(**kwargs) -> Trainer:
        settings = make_settings(**kwargs)
        prompts = PromptSet(TextEncoder.from_directory(tiny_teacher), PROMPTS, settings.distill.text_cache)
        return Trainer(load_denoiser(tiny_teacher), prompts, latent_shape(tiny_teacher), settings.run, settings.distill)

    return make

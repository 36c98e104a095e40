"""Make a distillation of the tiny teacher that takes seconds."""

import os
from functools import partial
from types import SimpleNamespace

import pytest
import small_run

os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"  # read once, by whichever test is the first on a GPU


@pytest.fixture
def folders(tmp_path):
    return SimpleNamespace(state=tmp_path / "state", out=tmp_path / "run" / "generator")


@pytest.fixture
def make_trainer(tiny_teacher):
    return partial(small_run.make_trainer, tiny_teacher)

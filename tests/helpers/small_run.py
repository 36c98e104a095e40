"""Make settings of a distillation of the tiny teacher that takes seconds."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from safetensors.torch import load_file
from torch import Tensor

from sid_core.config import Alarms, Distill, DistillSettings, Run
from sid_core.storage.states import saved_states
from sid_core.training import run
from sid_core.training.iteration import Trainer

PROMPTS = ["a red dot", "a blue dot", "two dots", "no dots", "a dot"]


def make_settings(run: dict | None = None, alarms: dict | None = None, **distill) -> DistillSettings:
    """Return settings of 20 iterations of batch 4 with frequent checkpoints; keyword arguments override."""
    quiet = Alarms(
        score_gap_max=1e9, latent_std_min=0, latent_std_max=1e9, generator_loss_max=1e9, patience=2, warmup_nimg=0
    )
    values = {
        "train_kimg": 0.08,
        "batch": 4,
        "micro_batch": 4,
        "compile": False,
        "lr": 1e-4,
        "ema_halflife_nimg": 20,
        "state_every_nimg": 12,
        "log_every_nimg": 8,
        "samples_every_nimg": 40,
        "alarms": quiet.model_copy(update=alarms or {}),
    }
    scales = {"fake_train": 1.5, "fake_eval": 1.5, "teacher": 1.5}
    base = {"name": "lsg-1.5", "strategy": "lsg", **scales, "alpha": 1.0, "num_steps": 1, "seed": 0}
    return DistillSettings(run=Run(**(base | (run or {}))), distill=Distill(**(values | distill)))


def make_trainer(teacher: Path, **kwargs) -> Trainer:
    return run.make_trainer(make_settings(**kwargs), teacher, PROMPTS)


def load_state(folder: Path) -> dict[str, Tensor]:
    """Load all tensors of the newest checkpoint, by "file/parameter"."""
    files = saved_states(folder)[0].glob("*.safetensors")
    return {f"{path.stem}/{name}": tensor for path in files for name, tensor in load_file(path).items()}


@contextmanager
def interrupted(monkeypatch, iteration: int) -> Iterator[None]:
    """Send SIGTERM during the training's iteration of this index, and expect that it stops."""
    inner = Trainer.step

    def step(self):
        if self.iteration == iteration:
            os.kill(os.getpid(), signal.SIGTERM)
        return inner(self)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "step", step)
        with pytest.raises(run.Interrupted):
            yield

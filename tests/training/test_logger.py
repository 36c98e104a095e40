"""Test the times of a training's log."""

from types import SimpleNamespace

import pytest
import torch

from sid_core.training import logger
from sid_core.training.distributed import World


@pytest.mark.parametrize(("device", "before_s", "gpu_s"), [("cpu", 0.0, 0.0), ("cuda", 120.0, 120.0 + 4 * 5)])
def test_clock_of_a_resumed_run_adds_the_seconds_of_every_gpu(monkeypatch, device, before_s, gpu_s):
    """Check 100 seconds by the clock on some GPUs, then 5 on four."""
    now = [1000.0]
    monkeypatch.setattr(logger.time, "monotonic", lambda: now[0])
    trainer = SimpleNamespace(nimg=400, device=torch.device(device), world=World(0, 4))
    clock = logger.Clock(trainer, {"elapsed_s": 100.0, "gpu_s": before_s})
    now[0] += 5
    assert clock.read(450) == {"elapsed_s": 105.0, "gpu_s": gpu_s, "images_per_s": 10.0}

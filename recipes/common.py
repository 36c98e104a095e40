"""Provide fresh scenes, the training step with its learning-rate schedule and averaged weights, and progress."""

import copy
import math
import sys
import time
from collections.abc import Iterator
from itertools import count

import torch
from torch import Tensor, nn

from sid_core.data.shapes.scenes import Scenes, draw_with_scenes

CHUNK = 1024  # scenes rendered at a time


def batches(batch: int) -> Iterator[tuple[Tensor, list[str], Scenes]]:
    """Yield endless batches of training scenes, none twice: images (batch, 3, 32, 32) uint8, captions, scenes."""
    assert CHUNK % batch == 0, f"batch {batch}: expected a divisor of {CHUNK}"
    for start in count(step=CHUNK):
        images, texts, scenes = draw_with_scenes("train", CHUNK, start)
        for low in range(0, CHUNK, batch):
            rows = slice(low, low + batch)
            yield images[rows], texts[rows], scenes[rows]


def to_signed(images: Tensor) -> Tensor:
    """Convert uint8 images to float32 in about [-1, 1], the inverse of the protocol's x * 127.5 + 128."""
    return (images.float() - 127.5) / 127.5


class Progress:
    """A line that counts up to `total`: rewritten in place on a terminal, printed anew every 20 s elsewhere."""

    def __init__(self, name: str, total: int):
        self.name, self.total, self.terminal = name, total, sys.stderr.isatty()
        self.started_s = self.printed_s = time.monotonic()

    def update(self, done: int, more: str = "") -> None:
        """Print `done` and the estimated time left, unless a line was printed a moment ago."""
        now = time.monotonic()
        if now - self.printed_s < (0.5 if self.terminal else 20) and done != self.total:
            return
        self.printed_s, spent = now, now - self.started_s
        left = spent / done * (self.total - done)
        line = f"{self.name} {done}/{self.total}{more}, {spent:.0f} s, {left:.0f} s left"
        end = "" if self.terminal and done != self.total else "\n"
        print(("\r\033[K" if self.terminal else "") + line, end=end, file=sys.stderr, flush=True)


class Training:
    """AdamW with linear warm-up and cosine decay to zero; `average`, an exponential average of the weights, is the product."""

    def __init__(self, model: nn.Module, steps: int, learning_rate: float, name: str):
        self.model, self.steps, self.learning_rate = model, steps, learning_rate
        options = {"betas": (0.9, 0.99), "weight_decay": 0.01, "fused": True}
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, **options)
        self.average = copy.deepcopy(model).requires_grad_(False).eval()
        self.progress = Progress(f"{name}: step", steps)
        self.step = 0

    def update(self, loss: Tensor) -> None:
        """Take one optimizer step on `loss`."""
        warm_up = min(1.0, (self.step + 1) / max(1, min(200, self.steps // 10)))
        cosine = 0.5 + 0.5 * math.cos(math.pi * self.step / self.steps)
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate * warm_up * cosine
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        decay = min(
            0.999, self.step / (self.step + 10)
        )  # a smaller decay at first, so that the initial weights vanish from the average
        with torch.no_grad():
            torch._foreach_lerp_(list(self.average.parameters()), list(self.model.parameters()), 1 - decay)
        self.step += 1
        self.progress.update(self.step, f", loss {loss.item():.4f}")

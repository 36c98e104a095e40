"""Draw the random inputs of an iteration from a stream with the key (seed, iteration, phase).

Nothing random is saved, and a resumed run draws the values of an uninterrupted one. Draws are for the whole batch;
micro-batches and ranks take slices, so results do not depend on how the batch is split.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..cluster.machine import to_device
from ..method.randomness import random_stream


@dataclass(frozen=True)
class Draw:
    """The random inputs of one phase, for a batch of B."""

    prompts: Tensor  # (B,) int64, indices into the prompt set
    dropped: Tensor  # (B,) bool, where the prompt becomes ""
    noises: Tensor  # (n, B, C, H, W), of the generator's evaluations
    eps: Tensor  # (B, C, H, W), the noise added to x_g
    t: Tensor  # (B,), the t of that noise
    real: Tensor | None = None  # (B,) int64, indices into the real pairs, from a stream of their own

    def __getitem__(self, rows: slice) -> "Draw":
        real = None if self.real is None else self.real[rows]
        return Draw(self.prompts[rows], self.dropped[rows], self.noises[:, rows], self.eps[rows], self.t[rows], real)

    def to(self, device: torch.device) -> "Draw":
        """Move noises, eps and t to `device`; the others index tensors in host memory."""
        moved = (to_device(tensor, device) for tensor in (self.noises, self.eps, self.t))
        return Draw(self.prompts, self.dropped, *moved, self.real)


def rng(seed: int, iteration: int, purpose: str) -> torch.Generator:
    """Make the random stream of one phase of one iteration, or of another purpose."""
    return random_stream("training", seed, iteration, purpose)


def draw(
    stream: torch.Generator,
    *,
    batch: int,
    latent_shape: tuple[int, int, int],
    num_prompts: int,
    noises: int,
    draw_t: Callable[[torch.Generator], Tensor],
    dropout: float = 0.0,
) -> Draw:
    """Draw the random inputs of a phase.

    Prompts are uniform with replacement, z and eps standard normal, t from `draw_t`; a prompt is dropped with
    probability `dropout`.
    """
    return Draw(
        prompts=torch.randint(num_prompts, (batch,), generator=stream),
        dropped=torch.rand(batch, generator=stream) < dropout,
        noises=torch.randn(noises, batch, *latent_shape, generator=stream),
        eps=torch.randn(batch, *latent_shape, generator=stream),
        t=draw_t(stream),
    )

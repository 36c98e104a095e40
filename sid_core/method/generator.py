"""Generate latents from noise in one or several network evaluations (arXiv 2406.01561, section 3; 2505.12674)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Steps:
    """The network evaluations of a generator, at the t_i of `Schedule.steps`.

    Args:
        t_init: t of the first; with Stable Diffusion's schedule 625 gives an input of 0.9286 z.
        count: K, the number of evaluations.
        noise: added to an estimate before its next evaluation: 'fresh', 'fixed' (z again), or 'ddim' (the noise that the
            last input and its estimate imply).
        objective: 'last' trains the last estimate through all evaluations; 'mixture' trains the estimate of a random one
            alone, so that one fake score learns the uniform mixture of all estimates.
    """

    t_init: int
    count: int = 1
    noise: str = "fresh"
    objective: str = "last"

    @property
    def noises(self) -> int:
        """Return the number of noises that an image needs."""
        return self.count if self.noise == "fresh" else 1

    @property
    def mean_walked(self) -> float:
        """Return the mean number of evaluations per image in training."""
        return (self.count + 1) / 2 if self.objective == "mixture" else self.count

    @property
    def trained(self) -> int:
        """Return the number of evaluations that gradients pass through."""
        return 1 if self.objective == "mixture" else self.count


def one_step(generator: nn.Module, z: Tensor, t_init: int, cond: Any) -> Tensor:
    """Return x_g = f_theta(sigma(t_init) z, t_init, c), scaled latents (B, C, H, W), from standard normal z."""
    return n_step(generator, [z], Steps(t_init), cond)


def n_step(
    generator: nn.Module, noises: Sequence[Tensor], steps: Steps, cond: Any, walked: int | None = None
) -> Tensor:
    """Refine the estimate K times: x = f_theta(sigma(t_0) z_0, t_0, c), then f_theta(alpha(t_i) x + sigma(t_i) z_i, t_i, c).

    Args:
        noises: `steps.noises` tensors (B, C, H, W).
        walked: return the estimate of this evaluation, 1 to K; None: the last.
    """
    schedule, x_g, x_t, before = generator.schedule, None, None, None
    times = schedule.steps(steps.t_init, steps.count)[:walked]
    for i, t_i in enumerate(times):
        t = torch.full((len(noises[0]),), t_i, device=noises[0].device)
        with torch.set_grad_enabled(torch.is_grad_enabled() and i >= len(times) - steps.trained):
            if i == 0:  # no estimate to add noise to
                x_t = schedule.sigma(t) * noises[0]
            else:
                eps = noises[i % len(noises)]
                if steps.noise == "ddim":
                    eps = (x_t - schedule.alpha(before) * x_g) / schedule.sigma(before)
                x_t = schedule.add_noise(x_g, eps, t)
            x_g, before = generator(x_t, t, cond), t
    return x_g

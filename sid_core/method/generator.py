"""Generate latents from noise in n network evaluations (arXiv 2406.01561, section 3)."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn


def one_step(generator: nn.Module, z: Tensor, t_init: int, cond: Any) -> Tensor:
    """Return x_g = f_theta(sigma(t_init) z, t_init, c).

    Args:
        z: standard normal noise (B, C, H, W).
        t_init: t of the evaluation; with Stable Diffusion's schedule 625 gives an input of 0.9286 z.
        cond: embeddings of B prompts.

    Returns:
        VAE-scaled latents (B, C, H, W) float32.
    """
    return n_step(generator, [z], t_init, cond)


def n_step(generator: nn.Module, noises: Sequence[Tensor], t_init: int, cond: Any) -> Tensor:
    """Refine the estimate n = len(noises) times, adding fresh noise before every step but the first.

    x = f_theta(sigma(t_0) z_0, t_0, c), then x = f_theta(alpha(t_i) x + sigma(t_i) z_i, t_i, c); t_i are those
    of `Schedule.steps`.
    """
    x_g, schedule = torch.zeros_like(noises[0]), generator.schedule
    for i, (t_i, z) in enumerate(zip(schedule.steps(t_init, len(noises)), noises, strict=True)):
        t = torch.full((len(z),), t_i, device=z.device)
        # the first step has no estimate to add noise to
        x_t = schedule.add_noise(x_g, z, t) if i else schedule.sigma(t) * z
        x_g = generator(x_t, t, cond)
    return x_g

"""The generator: noise to latent in one network evaluation, or in n (arXiv 2406.01561, section 3)."""

from collections.abc import Sequence

import torch
from torch import Tensor

from .denoiser import Denoiser


def one_step(generator: Denoiser, z: Tensor, t_init: int, cond: Tensor) -> Tensor:
    """x_g = f_theta(sigma(t_init) z, t_init, c).

    Args:
        z: standard normal noise (B, C, H, W).
        t_init: the noise level the generator starts at; 625 gives an input of 0.9286 z with Stable Diffusion's schedule.
        cond: prompt embeddings (B, L, D).

    Returns:
        VAE-scaled latents (B, C, H, W) float32.
    """
    return n_step(generator, [z], t_init, cond)


def n_step(generator: Denoiser, noises: Sequence[Tensor], t_init: int, cond: Tensor) -> Tensor:
    """Refine the estimate n = len(noises) times; fresh noise is added to the last estimate at every step after the first.

    x = f_theta(sigma(t_0) z_0, t_0, c), then x = f_theta(alpha(t_i) x + sigma(t_i) z_i, t_i, c) with t_i of `step_timesteps`.
    """
    x_g = torch.zeros_like(noises[0])
    for i, (t_i, z) in enumerate(zip(step_timesteps(t_init, len(noises)), noises, strict=True)):
        t = torch.full((len(z),), t_i, device=z.device)
        # the first step has no estimate yet: its input is sigma z alone
        x_t = generator.schedule.add_noise(x_g, z, t) if i else generator.schedule.sigma(t) * z
        x_g = generator(x_t, t, cond)
    return x_g


def step_timesteps(t_init: int, num_steps: int) -> list[int]:
    """t_i = floor(t_init (1 - i / n)) for i = 0..n-1, in exact integer arithmetic."""
    return [t_init * (num_steps - i) // num_steps for i in range(num_steps)]

"""SiD-LSG as pure functions of tensors (arXiv 2406.01561): schedule, denoiser, one-step generator, guidance, losses."""

from .denoiser import Denoiser
from .generator import n_step, one_step, step_timesteps
from .losses import Guidance, fake_score_loss, generator_loss
from .precision import DTYPES
from .schedule import NoiseSchedule

__all__ = [
    "DTYPES",
    "Denoiser",
    "Guidance",
    "NoiseSchedule",
    "fake_score_loss",
    "generator_loss",
    "n_step",
    "one_step",
    "step_timesteps",
]

"""Compute the generator's loss of SiD with long-short guidance (arXiv 2406.01561, section 3.3)."""

from torch import Tensor

from ..schedule import Schedule
from .base import ScoreDistillation, sample_weight


class SiD(ScoreDistillation):
    """Score identity Distillation, which differentiates through both scores."""

    def generator_loss(self, x_g: Tensor, f_teacher: Tensor, f_fake: Tensor, t: Tensor, schedule: Schedule) -> Tensor:
        return generator_loss(x_g, f_teacher, f_fake, self.alpha)


def generator_loss(x_g: Tensor, f_teacher: Tensor, f_fake: Tensor, alpha: float = 1.0) -> Tensor:
    """Return w [(1 - a) d^2 + d (f_fake - x_g)] with d = f_teacher - f_fake.

    This equals the published d [(f_teacher - x_g) - a d]. The weight w = 1 / mean |x_g - f_teacher| of each sample
    has no gradient; gradients reach x_g directly and through both scores.

    Args:
        x_g: the generator's samples (B, C, H, W).
        f_teacher: the teacher's guided estimate of x_g from x_t.
        f_fake: the fake score's guided estimate of x_g.
        alpha: a of the paper; 1 in the published LSG runs.
    """
    d, w = f_teacher - f_fake, sample_weight(x_g, f_teacher)
    return (w * ((1 - alpha) * d**2 + d * (f_fake - x_g))).sum(dim=(1, 2, 3)).mean()

"""SiD-LSG: the generator's loss of Score identity Distillation with long-short guidance (arXiv 2406.01561, section 3.3)."""

from torch import Tensor

from ..schedule import Schedule
from .base import ScoreDistillation

WEIGHT_FLOOR = 1e-5  # of the mean |x_g - f_teacher|, as published


class SiD(ScoreDistillation):
    """Differentiates through both scores; the strategies of long-short guidance are its four scales."""

    def generator_loss(self, x_g: Tensor, f_teacher: Tensor, f_fake: Tensor, t: Tensor, schedule: Schedule) -> Tensor:
        return generator_loss(x_g, f_teacher, f_fake, self.alpha)


def generator_loss(x_g: Tensor, f_teacher: Tensor, f_fake: Tensor, alpha: float = 1.0) -> Tensor:
    """w [(1 - a) d^2 + d (f_fake - x_g)] with d = f_teacher - f_fake; equals the published d [(f_teacher - x_g) - a d].

    w = 1 / mean |x_g - f_teacher| per sample carries no gradient. Gradient flows to x_g directly and through both scores.

    Args:
        x_g: the generator's sample (B, C, H, W).
        f_teacher: the teacher's guided estimate of it from x_t.
        f_fake: the fake score's guided estimate.
        alpha: a of the paper; 1 in the published LSG runs.
    """
    d = f_teacher - f_fake
    w = 1 / (x_g - f_teacher).detach().abs().mean(dim=(1, 2, 3), keepdim=True).clamp(min=WEIGHT_FLOOR)
    return (w * ((1 - alpha) * d**2 + d * (f_fake - x_g))).sum(dim=(1, 2, 3)).mean()

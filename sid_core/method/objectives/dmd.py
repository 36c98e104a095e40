"""Compute the generator's loss of distribution matching distillation (DMD2, arXiv 2405.14867)."""

from torch import Tensor

from ..schedule import Schedule
from .base import ScoreDistillation, sample_weight


class DMD(ScoreDistillation):
    """Distribution matching distillation: dL/dx_g = -w (f_teacher - f_fake), with both scores constant.

    Published for Stable Diffusion 1.5: teacher's CFG 1.75 ("long" guidance), ten updates of the fake score.
    """

    needs_score_gradient = False

    def generator_loss(self, x_g: Tensor, f_teacher: Tensor, f_fake: Tensor, t: Tensor, schedule: Schedule) -> Tensor:
        return (sample_weight(x_g, f_teacher) * (f_fake - f_teacher) * x_g).sum(dim=(1, 2, 3)).mean()

"""Compute the generator's loss of Diff-Instruct (arXiv 2305.18455), that of variational score distillation."""

from torch import Tensor

from ..schedule import Schedule
from .base import ScoreDistillation


class DiffInstruct(ScoreDistillation):
    """Diff-Instruct: dL/dx_g = -alpha_t sigma_t (f_teacher - f_fake), with both scores constant.

    Published for Stable Diffusion 1.5: teacher's CFG 1.5 ("long" guidance), one update of the fake score.
    """

    needs_score_gradient = False

    def generator_loss(self, x_g: Tensor, f_teacher: Tensor, f_fake: Tensor, t: Tensor, schedule: Schedule) -> Tensor:
        return (schedule.alpha(t) * schedule.sigma(t) * (f_fake - f_teacher) * x_g).sum(dim=(1, 2, 3)).mean()

"""Add an objective in one file: distribution matching distillation (DMD, arXiv 2405.14867)."""

from torch import Tensor

from sid_core.method.objectives import ScoreDistillation
from sid_core.method.schedule import Schedule


class DMD(ScoreDistillation):
    """DMD: dL/dx_g = -w (f_teacher - f_fake) with constant scores."""

    needs_score_gradient = False

    def generator_loss(self, x_g: Tensor, f_teacher: Tensor, f_fake: Tensor, t: Tensor, schedule: Schedule) -> Tensor:
        w = 1 / (x_g.detach() - f_teacher).abs().mean(dim=(1, 2, 3), keepdim=True).clamp(min=1e-5)
        return (w * (f_fake - f_teacher) * x_g).sum(dim=(1, 2, 3)).mean()

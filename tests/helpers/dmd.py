"""Add an objective in one file: distribution matching distillation (DMD, arXiv 2405.14867)."""

from dataclasses import replace

from torch import Tensor

from sid_core.method import Phase
from sid_core.method.objectives import ScoreDistillation
from sid_core.method.schedule import Schedule


class DMD(ScoreDistillation):
    """DMD: dL/dx_g = -w (f_teacher - f_fake) with constant scores; two updates of the fake score per iteration."""

    needs_score_gradient = False
    fake_updates = 2

    def generator_loss(self, x_g: Tensor, f_teacher: Tensor, f_fake: Tensor, t: Tensor, schedule: Schedule) -> Tensor:
        w = 1 / (x_g.detach() - f_teacher).abs().mean(dim=(1, 2, 3), keepdim=True).clamp(min=1e-5)
        return (w * (f_fake - f_teacher) * x_g).sum(dim=(1, 2, 3)).mean()

    def phases(self) -> list[Phase]:
        fake, generator = super().phases()
        return [*(replace(fake, stream=f"fake {i}") for i in range(self.fake_updates)), generator]

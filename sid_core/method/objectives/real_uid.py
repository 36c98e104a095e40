"""Compute the losses of RealUID (ICLR 2026): real images without a discriminator."""

from typing import Any

from torch import Tensor

from ..schedule import Schedule
from .base import Batch, Metrics, ScoreDistillation, fake_score_loss


class RealUID(ScoreDistillation):
    """RealUID, which differentiates through both scores; its fake score fits samples and real images.

    a = b = 1 uses no real image, and is twice SiD with alpha 0.5 and without w. Published: b/a of 0.98 or 1.02, with
    a and b in [0.85, 1]; the result is sensitive to both.
    """

    @property
    def uses_real_images(self) -> bool:
        return self.real_uid.a < 1 or self.real_uid.b < 1

    def fake_loss(self, fake_score: Any, batch: Batch, x_g: Tensor) -> tuple[Tensor, Metrics]:
        """Return a |f(x_t^g) - (b/a) x_g|^2 + (1-a) |f(x_t^r) - ((1-b)/(1-a)) x_r|^2, weighted as the fake score's loss.

        At a = 1 the second term is its limit without the part that f does not change, -2 (1-b) f(x_t^r) x_r.
        """
        if not self.uses_real_images:
            return super().fake_loss(fake_score, batch, x_g)
        a, b, schedule = self.real_uid.a, self.real_uid.b, fake_score.schedule
        weight = schedule.fake_weight(batch.t)

        def estimate(x: Tensor, cond: Any) -> Tensor:
            x_t = schedule.add_noise(x, batch.eps, batch.t)
            return fake_score(x_t, batch.t, cond, batch.empty, self.guidance.fake_train)

        loss = a * fake_score_loss(estimate(x_g, batch.cond), b / a * x_g, weight)
        f_real = estimate(batch.real, batch.real_cond)
        if a < 1:
            loss = loss + (1 - a) * fake_score_loss(f_real, (1 - b) / (1 - a) * batch.real, weight)
        else:
            loss = loss - 2 * (1 - b) * (weight * f_real * batch.real).sum(dim=(1, 2, 3)).mean()
        return loss, {"fake_loss": loss.detach() / x_g[0].numel()}

    def real_passes(self) -> float:
        if not self.uses_real_images:
            return 0
        return 3 if self.guidance.fake_train in (0, 1) else 6

    def generator_loss(self, x_g: Tensor, f_teacher: Tensor, f_fake: Tensor, t: Tensor, schedule: Schedule) -> Tensor:
        """Return a |f_teacher - (b/a) x_g|^2 - a |f_fake - (b/a) x_g|^2."""
        a, target = self.real_uid.a, self.real_uid.b / self.real_uid.a * x_g
        return a * ((f_teacher - target) ** 2 - (f_fake - target) ** 2).sum(dim=(1, 2, 3)).mean()

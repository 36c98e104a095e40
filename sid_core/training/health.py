"""Stop a diverging run by limits on logged metrics.

The generator's loss oscillates about zero and does not show convergence. The gap between the two scores and the
standard deviation of the latents do.
"""

from typing import TYPE_CHECKING

from ..errors import UserError

if TYPE_CHECKING:
    from ..config import Alarms

REMEDY = "lower distill.lr (or raise the limit, if the samples look right), then run again"
GAN_REMEDY = "lower adversarial.weight or distill.fake_lr, or give more real images, then run again"


class TrainingStopped(UserError):
    """The run cannot give a useful generator: non-finite numbers, or an alarm."""


class AlarmWatch:
    """Counts consecutive logged points that exceed each limit."""

    def __init__(self, alarms: "Alarms", adversarial_nimg: int = 0):
        """Start counting.

        Args:
            adversarial_nimg: images before the accuracy of a discriminator is checked: until then it learns alone.
        """
        self.alarms, self.adversarial_nimg = alarms, adversarial_nimg
        self.counts: dict[str, int] = {}

    def check(self, point: dict[str, float | None]) -> None:
        """Check a logged point after `warmup_nimg`; TrainingStopped if `patience` consecutive ones exceed a limit."""
        if point["nimg"] < self.alarms.warmup_nimg:
            return
        values = {
            "score_gap_max": point["score_gap"],
            "latent_std_min": point["latent_std"],
            "latent_std_max": point["latent_std"],
            "generator_loss_max": point["generator_loss"],
        }
        if "discriminator_accuracy" in point and point["nimg"] >= self.adversarial_nimg:
            values["discriminator_accuracy_max"] = point["discriminator_accuracy"]
        for limit, value in values.items():
            bound = getattr(self.alarms, limit)
            beyond = value is None or (value < bound if limit.endswith("_min") else abs(value) > bound)
            self.counts[limit] = self.counts.get(limit, 0) + 1 if beyond else 0
            if self.counts[limit] >= self.alarms.patience:
                name = limit.rsplit("_", 1)[0]
                remedy = GAN_REMEDY if name == "discriminator_accuracy" else REMEDY
                raise TrainingStopped(
                    f"{name}={value if value is None else round(value, 4)} beyond distill.alarms.{limit}={bound:g} at {self.alarms.patience} points in a row, "
                    f"the last at {point['nimg']:,} images: the run has failed; {remedy}"
                )

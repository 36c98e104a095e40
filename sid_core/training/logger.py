"""Write a run's log and sample grids."""

import json
import logging
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from torch import Tensor

from ..pipeline.paths import State
from ..storage.files import write_text
from .iteration import Trainer

log = logging.getLogger(__name__)
GRID = 16  # samples in a grid


class TrainingLogger:
    """Log and sample grids of a run, continued from its checkpoint; on rank 0 only.

    Attributes:
        before: logged points up to that checkpoint.
    """

    def __init__(
        self,
        trainer: Trainer,
        state: Path,
        total_nimg: int,
        on_samples: Callable[[int, Tensor], None] | None,
        on_held_out: Callable[[Iterator[Tensor]], dict[str, float | None]] | None,
    ):
        self.trainer, self.total_nimg, self.state = trainer, total_nimg, state
        self.on_samples, self.on_held_out = on_samples, on_held_out
        State(state).grids.mkdir(exist_ok=True)
        self.path = State(state).training
        self.before = _truncate_log(self.path, trainer.nimg)
        self.clock = Clock(trainer, self.before[-1] if self.before else {})
        if trainer.iteration:
            log.info("%s: continuing at %s of %s images", trainer.run.name, f"{trainer.nimg:,}", f"{self.total_nimg:,}")
        else:
            self.draw()

    def log(self, point: dict[str, float | None], quiet: bool) -> None:
        point = {key: point[key] for key in ("nimg", "iteration")} | self.clock.read(self.trainer.nimg) | point
        with open(self.path, "a", encoding="utf-8") as handle:
            handle.write(json.dumps(point) + "\n")
        if not quiet:
            log.info("%s: %s", self.trainer.run.name, _line(point, self.total_nimg))

    def draw(self) -> None:
        if self.on_samples:
            self.on_samples(self.trainer.nimg, self.trainer.grid_latents(GRID))

    def score_held_out(self) -> dict[str, float | None]:
        """Return proxy metrics of held-out prompts."""
        return self.on_held_out(self.trainer.held_out_latents()) if self.on_held_out else {}


class Clock:
    """Seconds of training over all attempts, those of all its GPUs, and images per second of this attempt.

    Args:
        before: the last logged point of the attempts before; {} without one.
    """

    def __init__(self, trainer: Trainer, before: dict[str, float | None]):
        self.first_nimg, self.before, self.started = trainer.nimg, before, time.monotonic()
        self.gpus = 0 if trainer.device.type == "cpu" else trainer.world.size

    def read(self, nimg: int) -> dict[str, float]:
        here_s = time.monotonic() - self.started
        values = {
            "elapsed_s": self.before.get("elapsed_s", 0.0) + here_s,
            "gpu_s": self.before.get("gpu_s", 0.0) + self.gpus * here_s,
            "images_per_s": (nimg - self.first_nimg) / here_s,
        }
        return {name: round(value, 3) for name, value in values.items()}


def make_point(trainer: Trainer, window: dict[str, Tensor]) -> dict[str, float | None]:
    """Make a logged point: means over the iterations since the last one, null if not finite (nonfinite: skip).

    With `steps_objective: mixture` also the generator's loss by its evaluation in training, null without iterations.
    """
    steps = trainer.objective.steps
    by_step = [f"generator_loss_k{k}" for k in range(1, steps.count + 1)] if steps.objective == "mixture" else []
    means = dict.fromkeys(by_step, math.nan)
    for name, total in window.items():
        if not name.startswith("iterations"):
            count = name.replace("generator_loss", "iterations") if name in by_step else "iterations"
            means[name] = float(total) / float(window[count])
    scales = {f"{phase.name}_loss_scale": trainer.trained[phase.network].guard.scale for phase in trainer.phases}
    return {
        "nimg": trainer.nimg,
        "iteration": trainer.iteration,
        "network_passes": trainer.network_passes,
        **{name: mean if math.isfinite(mean) else None for name, mean in means.items()},
        "ema_drift": trainer.ema_drift(),
        "skipped": trainer.skipped,
        **{name: float(scale) for name, scale in scales.items() if trainer.settings.precision == "float16"},
    }


def _line(point: dict[str, float | None], total_nimg: int) -> str:
    left_s = (total_nimg - point["nimg"]) / point["images_per_s"]
    gap, std = ("not finite" if point[key] is None else f"{point[key]:.3f}" for key in ("score_gap", "latent_std"))
    return (
        f"{point['nimg']:,} of {total_nimg:,} images, {point['images_per_s']:.0f} images/s, {left_s:.0f} s left, "
        f"score gap {gap}, latent std {std}"
    )


def _truncate_log(path: Path, nimg: int) -> list[dict[str, float | None]]:
    """Remove points after the restored checkpoint, and a partial last line; return the others."""
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        try:
            point = json.loads(line)
        except json.JSONDecodeError:
            break
        if point["nimg"] <= nimg:
            kept.append(point)
    write_text(path, "".join(json.dumps(point) + "\n" for point in kept))
    return kept

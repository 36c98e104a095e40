"""Report the health of each training: its end, skipped updates, alarms."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..config import Alarms
from ..pipeline.paths import Results
from ..storage.files import read_json
from .curves import Curves, exceeds_limit
from .entries import base_name

COLUMNS = (
    "Run", "Training", "Images", "Time", "Skipped updates", "Points beyond an alarm", "Score gap", "Latent spread",
)  # fmt: skip


@dataclass(frozen=True)
class Health:
    """The health of one training."""

    run: str  # its label
    setting: str  # the run's name without its seed
    ended: str | None  # finished | aborted | unfinished; None: the state is deleted, the generator exists
    why: str  # reason of an abort
    generator: bool  # exported
    nimg: int
    elapsed_s: float
    skipped: int  # updates whose loss or gradient was not finite
    exceeded: int  # logged points beyond an alarm's limit
    score_gap: float  # at the end
    latent_std: float

    def cells(self) -> list[str]:
        """Return texts in the order of COLUMNS."""
        hours, minutes = divmod(round(self.elapsed_s / 60), 60)
        return [
            self.run,
            self.ended or "finished",
            f"{self.nimg:,}",
            f"{hours} h {minutes:02d} min" if hours else f"{minutes} min",
            f"{self.skipped:,}",
            f"{self.exceeded:,}",
            f"{self.score_gap:.3f}",
            f"{self.latent_std:.3f}",
        ]


def examine(alarms: Alarms, curves: Curves, folder: Path) -> list[Health]:
    """Check every training of the experiment in `folder`."""
    result = []
    for run, points in curves:
        end, generator = Results(folder).state(run.name).ended, Results(folder).run(run.name).generator.is_dir()
        ended = read_json(end) if end.is_file() else {}
        result.append(
            Health(
                run=run.label,
                setting=base_name(run),
                ended=ended.get("how", None if generator else "unfinished"),
                why=ended.get("why", ""),
                generator=generator,
                exceeded=int(np.sum(exceeds_limit(alarms, run, points))),
                **{key: int(points[key][-1]) for key in ("nimg", "skipped")},
                **{key: float(points[key][-1]) for key in ("elapsed_s", "score_gap", "latent_std")},
            )
        )
    return result


def warnings(health: list[Health]) -> list[str]:
    """Return the limits that trainings in bad health set to the conclusions."""
    result = []
    for one in health:
        if one.ended == "aborted":
            result.append(
                f"Aborted: the last training of {one.run} was ended by an alarm; its generator is from one before."
                if one.generator
                else f"Aborted: an alarm ended the training of {one.run}, which therefore has no row: {one.why}"
            )
        if one.skipped:
            result.append(f"Skipped: {one.run} left out {one.skipped:,} updates whose loss or gradient was not finite.")
        if one.exceeded:
            points = f"{one.exceeded:,} logged points"
            result.append(f"Alarms: {one.run} was beyond a limit at {points}, never long enough to be ended.")
    return result

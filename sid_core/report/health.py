"""Whether each training went well: how it ended, updates left out, alarms."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..config import Alarms
from ..pipeline.paths import Results
from ..storage.files import read_json
from .curves import Curves, beyond
from .entries import base_name

COLUMNS = (
    "Run",
    "Training",
    "Images",
    "Time",
    "Skipped updates",
    "Points beyond an alarm",
    "Score gap",
    "Latent spread",
)


@dataclass(frozen=True)
class Health:
    """Of one training."""

    run: str
    setting: str  # the run's name without its seed
    ended: str | None  # finished | aborted | unfinished; None: its state is no longer there, its generator is
    why: str  # of an aborted one
    generator: bool  # whether there is one
    nimg: int
    elapsed_s: float
    skipped: int  # updates whose loss or gradient was not finite
    beyond: int  # logged points after the warm-up
    score_gap: float  # at the end
    latent_std: float

    def cells(self) -> list[str]:
        """In the order of COLUMNS."""
        hours, minutes = divmod(round(self.elapsed_s / 60), 60)
        return [
            self.run,
            self.ended or "finished",  # its generator is here
            f"{self.nimg:,}",
            f"{hours} h {minutes:02d} min" if hours else f"{minutes} min",
            f"{self.skipped:,}",
            f"{self.beyond:,}",
            f"{self.score_gap:.3f}",
            f"{self.latent_std:.3f}",
        ]


def examine(alarms: Alarms, curves: Curves, folder: Path) -> list[Health]:
    """Every training of the experiment in `folder`."""
    result = []
    for run, points in curves:
        mark, generator = Results(folder).state(run.name).ended, Results(folder).run(run.name).generator
        ended = read_json(mark) if mark.is_file() else {}
        result.append(
            Health(
                run=run.name,
                setting=base_name(run),
                ended=ended.get("how", None if generator.is_dir() else "unfinished"),
                why=ended.get("why", ""),
                generator=generator.is_dir(),
                nimg=int(points["nimg"][-1]),
                elapsed_s=float(points["elapsed_s"][-1]),
                skipped=int(points["skipped"][-1]),
                beyond=int(np.sum(beyond(alarms, points))),
                score_gap=float(points["score_gap"][-1]),
                latent_std=float(points["latent_std"][-1]),
            )
        )
    return result


def warnings(health: list[Health]) -> list[str]:
    """What of it limits the conclusions."""
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
        if one.beyond:
            result.append(
                f"Alarms: {one.run} was beyond a limit at {one.beyond:,} logged points, never long enough to be ended."
            )
    return result

"""Find the files of an experiment: its frozen settings, scores and training logs."""

from dataclasses import dataclass
from pathlib import Path

from ..config import Config, baselines, generators, load_config, runs
from ..errors import UserError
from .paths import Results, Row, State


@dataclass(frozen=True)
class Inputs:
    """Inputs of a report in the order of the tables, and its output."""

    results: Results
    scores: dict[str, Path]  # by name of run or baseline
    trainings: dict[str, Row | State]  # by run; a state: unfinished
    out: Results

    @classmethod
    def finished(cls, config: Config, folder: Path) -> "Inputs":
        """List those of a finished experiment."""
        results = Results(Path(folder))
        rows = [(run.name, results.run(run.name)) for run in generators(config)]
        rows += [(one.name, results.baseline(one.name)) for one in baselines(config)]
        return cls(
            results,
            {name: row.score for name, row in rows},
            {run.name: results.run(run.name) for run in runs(config)},
            results,
        )

    @classmethod
    def so_far(cls, config: Config, folder: Path) -> "Inputs":
        """List the existing ones of an unfinished experiment, also unfinished trainings.

        Raises:
            UserError: no generator is scored.
        """
        whole = cls.finished(config, folder)
        scores = {name: path for name, path in whole.scores.items() if path.is_file()}
        if not any(run.name in scores for run in generators(config)):
            raise UserError(f"{folder}: no run is scored yet; sid-core status --results {folder} shows their progress")
        places = {
            name: row if row.training.is_file() else whole.results.state(name) for name, row in whole.trainings.items()
        }
        begun = {name: place for name, place in places.items() if _has_line(place.training)}
        return cls(whole.results, scores, begun, whole.results.so_far)


def _has_line(log: Path) -> bool:
    return log.is_file() and b"\n" in log.read_bytes()


def load_frozen(folder: Path) -> Config:
    """Load the settings that an experiment was started with.

    Raises:
        UserError: the folder has none.
    """
    path = Results(folder).config
    if not path.is_file():
        raise UserError(
            f"--results {folder}: has no {path.name}; expected results/EXPERIMENT of a pipeline that was started"
        )
    return load_config(path)

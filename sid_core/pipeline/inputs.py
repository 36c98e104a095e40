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
        scores = {run.name: results.run(run.name).score for run in generators(config)}
        scores |= {baseline.name: results.baseline(baseline.name).score for baseline in baselines(config)}
        return cls(results, scores, {run.name: results.run(run.name) for run in runs(config)}, results)

    @classmethod
    def so_far(cls, config: Config, folder: Path) -> "Inputs":
        """List the existing ones of an unfinished experiment; raise UserError if no generator is scored."""
        whole = cls.finished(config, folder)
        scores = {name: path for name, path in whole.scores.items() if path.is_file()}
        if not any(run.name in scores for run in generators(config)):
            raise UserError(f"{folder}: no run is scored yet; sid-core status --results {folder} shows their progress")
        trainings = {}
        for name, row in whole.trainings.items():
            source = row if row.training.is_file() else whole.results.state(name)
            if source.training.is_file() and b"\n" in source.training.read_bytes():
                trainings[name] = source
        return cls(whole.results, scores, trainings, whole.results.so_far)


def load_frozen(folder: Path) -> Config:
    """Load the settings that an experiment was started with; raise UserError if the folder has none."""
    path = Results(folder).config
    if not path.is_file():
        raise UserError(f"--results {folder}: has no {path.name}; expected results/EXPERIMENT of a started pipeline")
    return load_config(path)

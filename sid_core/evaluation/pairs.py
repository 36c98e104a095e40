"""Compare two scores by score.json and replicates.json: differences that sampling or training seeds do not explain.

torch is not imported.
"""

import csv
import io
import math
from collections import defaultdict
from dataclasses import dataclass
from itertools import combinations, product
from pathlib import Path

from ..config import Config, baselines, generators
from ..errors import UserError
from ..pipeline.inputs import Inputs
from ..pipeline.paths import Row
from ..storage.files import read_json, write_text
from .metrics.catalogue import METRICS
from .metrics.uncertainty import Estimate, from_replicates, mean_of_few, mean_over_seeds

PAIR_COLUMNS = ("a", "b", "metric", "difference", "low", "high", "excludes_zero", "better", "over")
SEED_COLUMNS = ("run", "metric", "seeds", "mean", "sd", "low", "high")


@dataclass(frozen=True)
class Difference:
    """A row of pairs.csv: a metric of `a` minus that of `b`, with its 95 % interval."""

    a: str
    b: str
    metric: str
    value: float
    low: float
    high: float
    better: str  # empty where no difference is shown
    over: str  # samples, or seeds: both seeds and samples

    def verdict(self, run: str) -> str:
        """Describe `run`, which is `a` or `b`: 'worse by 0.60 [0.50, 0.70]', 'no difference shown (0.1 [-0.2, 0.4])'."""
        if self.better:
            return f"{'better' if self.better == run else 'worse'} by {self.format_difference()}"
        return f"no difference shown ({self.relative(run)})"

    def relative(self, run: str) -> str:
        """Return the difference of `run`, which is `a` or `b`, from the other one: '-0.60 [-0.70, -0.50]'."""
        return self._signed(1 if run == self.a else -1)

    def format_difference(self) -> str:
        """Return the difference as '0.60 [0.50, 0.70]', positive where the interval excludes 0."""
        return self._signed(-1 if self.high < 0 else 1)

    def _signed(self, sign: int) -> str:
        return with_interval(sign * self.value, sign * self.low, sign * self.high, (self.high - self.low) / 4)


def with_interval(value: float, low: float, high: float, error: float) -> str:
    """Format a value and its interval, in either order, as '0.60 [0.50, 0.70]' with two digits of the error."""
    digits = decimals(error)
    low, high = sorted((low, high))
    return f"{value:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def decimals(error: float, most: int = 6) -> int:
    """Return the decimals that show two digits of an error, at most `most`."""
    return min(max(1 - math.floor(math.log10(error)), 0), most) if error > 0 else 4


@dataclass(frozen=True)
class Scored:
    """A scored run or baseline."""

    name: str
    folder: Path
    score: dict
    estimates: dict[str, Estimate]


def replicates_record(estimate: Estimate) -> dict:
    """Return a metric's record in replicates.json, from which, with the value, intervals and differences are computed."""
    e = estimate
    return {"method": e.method, "quadratic": e.quadratic, "centre": e.centre, "values": e.replicates}


def read(folder: Path, name: str | None = None) -> Scored:
    """Load the score in a run's or baseline's folder; a UserError names one that is missing, damaged or changed."""
    path, replicates = Row(folder).score, Row(folder).replicates
    if not path.is_file():
        raise UserError(f"{folder}: no {path.name}; expected a scored row, such as results/shapes/runs/lsg-2")
    score = read_json(path)
    if not isinstance(score, dict) or not {"intervals", "recipes", "not_computed", "protocol_hash"} <= score.keys():
        raise UserError(f"{path}: no score with intervals. Fix: delete it and run again, which takes seconds")
    records, intervals = read_json(replicates), score["intervals"]
    foreign = UserError(f"{replicates}: not of the score beside it. Fix: delete both and run again")
    if records.keys() != intervals.keys():
        raise foreign
    estimates = {metric: _estimate(score[metric], record) for metric, record in records.items()}
    if not all(all(map(math.isclose, (e.low, e.high), intervals[key])) for key, e in estimates.items()):
        raise foreign
    return Scored(name or folder.resolve().name, folder, score, estimates)


def _estimate(value: float, record: dict) -> Estimate:
    return from_replicates(record["method"], value, record["values"], record["quadratic"], record["centre"])


def check_comparable(a: Scored, b: Scored) -> None:
    """Raise a UserError unless two scores share one protocol: captions, seeds, sizes, networks and reference images."""
    if a.score["protocol_hash"] != b.score["protocol_hash"]:
        from .protocol import differences  # imports torch, for an error alone

        apart = differences(a.score["protocol"], b.score["protocol"])
        raise UserError(
            f"not comparable: {a.folder} and {b.folder} have different protocols ({apart or 'their hash alone'}). "
            "Fix: score both with one `evaluate` block, captions and seed"
        )
    for metric in a.estimates.keys() & b.estimates.keys():
        first, second = (len(scored.estimates[metric].replicates) for scored in (a, b))
        if first != second:
            raise UserError(
                f"not comparable: {a.folder} and {b.folder} have {first} and {second} replicates of {metric}. "
                "Fix: score both with one version of sid-core"
            )


def differences_of(a: Scored, b: Scored) -> dict[str, Estimate]:
    """Compute paired differences of all metrics that both, of one protocol, measure alike, in order of the tables."""
    check_comparable(a, b)
    return {metric: a.estimates[metric] - b.estimates[metric] for metric in _shared([a, b])}


def better(metric: str, difference: Estimate, a: str, b: str) -> str:
    """Return the significantly better one of `a` and `b`, or '' where the interval of a - b holds 0.

    The value of FID_inf may be on the other side of 0 than its interval.
    """
    direction = METRICS[metric].better
    if not difference.excludes_zero or direction is None:
        return ""
    return a if (difference.high < 0) == (direction == "lower") else b


# --- all pairs of an experiment --------------------------------------------------------------------------------------


def write_pairs(config: Config, inputs: Inputs) -> None:
    """Write pairs.csv, paired differences of all rows of one protocol, and seeds.csv, means over training seeds.

    Two settings are compared over the seeds that both have; a setting and a baseline or import, which has no seed, over all.
    """
    scored = {name: read(path.parent, name) for name, path in inputs.scores.items()}
    rows = [
        _row(a.name, b.name, metric, difference, "samples")
        for a, b in combinations(scored.values(), 2)
        for metric, difference in differences_of(a, b).items()
    ]
    by_seed: dict[str, dict[int, Scored]] = defaultdict(dict)
    for run in (run for run in generators(config) if run.name in scored):
        by_seed[run.name.removesuffix(f"-seed{run.seed}")][run.seed] = scored[run.name]
    several = {name: seeds for name, seeds in by_seed.items() if len(seeds) > 1}
    for a, b in combinations(several, 2):
        seeds = sorted(several[a].keys() & several[b].keys())
        if len(seeds) > 1:
            rows += _over_seeds(a, b, [several[a][seed] for seed in seeds], [several[b][seed] for seed in seeds])
    for a, fixed in product(several, [*config.imports, *baselines(config)]):
        if fixed.name in scored:
            ours = list(several[a].values())
            rows += _over_seeds(a, fixed.name, ours, [scored[fixed.name]] * len(ours))
    means = []
    for name, seeds in several.items():
        for metric in _shared([*seeds.values()]):
            found = mean_of_few([one.score[metric] for one in seeds.values()])
            means.append((name, metric, len(seeds), found.value, found.se * len(seeds) ** 0.5, found.low, found.high))
    write_text(inputs.out.pairs, _csv(PAIR_COLUMNS, rows))
    write_text(inputs.out.seeds, _csv(SEED_COLUMNS, means))


def _row(a: str, b: str, metric: str, difference: Estimate, over: str) -> tuple:
    interval = difference.value, difference.low, difference.high
    return a, b, metric, *interval, str(difference.excludes_zero).lower(), better(metric, difference, a, b), over


def _over_seeds(a: str, b: str, first: list[Scored], second: list[Scored]) -> list[tuple]:
    """Return rows of pairs.csv: mean differences of scores, one of `first` and one of `second` per seed."""
    means = {
        key: mean_over_seeds([x.estimates[key] - y.estimates[key] for x, y in zip(first, second, strict=True)])
        for key in _shared(first + second)
    }
    return [_row(a, b, key, mean, "seeds") for key, mean in means.items()]


def _shared(scored: list[Scored]) -> list[str]:
    """Return the metrics that all scores have, by the same recipe, in the order of the tables."""
    recipes = [one.score["recipes"] for one in scored]
    return [
        metric
        for metric in METRICS
        if all(metric in one.estimates for one in scored)
        and all(recipe.get(metric) == recipes[0].get(metric) for recipe in recipes)
    ]


def _csv(columns: tuple[str, ...], rows: list[tuple]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([columns, *rows])
    return text.getvalue()

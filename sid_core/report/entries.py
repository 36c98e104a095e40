"""Group rows over seeds to settings: a row of the readable table, a point of a figure, a row of images each."""

import csv
import io
import statistics
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..config import Config, Run, generators, runs
from ..errors import UserError
from ..evaluation.metrics.catalogue import METRICS
from ..evaluation.pairs import Difference
from .table import Row

Intervals = dict[tuple[str, str], tuple[float, float]]  # by setting and metric
Differences = dict[tuple[frozenset[str], str], Difference]  # by two settings and metric, as `pair` has them


@dataclass(frozen=True)
class Entry:
    """One setting over its seeds."""

    name: str  # the run's, without its seed
    kind: str
    rows: tuple[Row, ...]
    swept: bool = False  # one of the LSG scales: the curve of the trade-off
    errors: dict[str, float] = field(default_factory=dict)  # standard errors of a single row's metrics
    intervals: dict[str, tuple[float, float]] = field(default_factory=dict)  # 95 %, over seeds where there are several

    @property
    def row(self) -> Row:
        """Return the first seed's row, for values that seeds share."""
        return self.rows[0]

    @property
    def label(self) -> str:
        """Name the setting, or a single row: 'SiD-LSG κ = 1.5'."""
        return self.row.label if len(self.rows) == 1 else base_label(self.row)

    @property
    def comparable(self) -> bool:
        """Return whether the protocol is that of this experiment's own rows."""
        return self.row.not_comparable is None

    def estimate(self, column: str) -> tuple[float, float | None] | None:
        """Return mean and standard deviation of a column over seeds, or a single value and its standard error."""
        values = [row.measured.get(column) for row in self.rows]
        if None in values:
            return None
        if len(values) > 1:
            return statistics.fmean(values), statistics.stdev(values)
        return values[0], self.errors.get(column, self.row.measured.get(f"{column}_se"))


def make_entries(config: Config, rows: list[Row], scores: dict[str, dict], over_seeds: Intervals) -> list[Entry]:
    """Group rows over seeds, in their order, with the intervals of `scores` (by run or baseline) or of seeds.csv."""
    by_name, sweep = {run.name: run for run in generators(config)}, _sweep(config)
    groups = grouped(rows, lambda row: base_name(by_name[row.run]) if row.kind == "generator" else row.run)
    entries = []
    for name, group in groups.items():
        kind = group[0].kind
        score = scores.get(group[0].run, {}) if len(group) == 1 else {}
        seeds = {metric: ends for (setting, metric), ends in over_seeds.items() if setting == name}
        intervals = {metric: tuple(ends) for metric, ends in score.get("intervals", seeds).items()}
        swept = kind == "generator" and name in sweep
        entries.append(Entry(name, kind, tuple(group), swept, score.get("standard_errors", {}), intervals))
    return entries


def grouped(items: Iterable, key: Callable) -> dict[Any, list]:
    """Group items by `key(item)`; items and groups keep their order."""
    groups: dict[Any, list] = {}
    for item in items:
        groups.setdefault(key(item), []).append(item)
    return groups


def read_intervals(path: Path) -> Intervals:
    """Read seeds.csv: 95 % intervals of means over training seeds."""
    return {(line["run"], line["metric"]): (float(line["low"]), float(line["high"])) for line in _read_csv(path)}


def read_differences(path: Path, entries: list[Entry]) -> Differences:
    """Read pairs.csv by settings: over training seeds where there are several, else over samples of the first seed."""
    own = {entry.name: entry.name for entry in entries}
    settings = {"samples": {entry.row.run: entry.name for entry in entries}, "seeds": own}
    found: Differences = {}
    for line in _read_csv(path):
        names = settings[line["over"]]
        if not {line["a"], line["b"]} <= names.keys():
            continue
        a, b = names[line["a"]], names[line["b"]]
        value, low, high = (float(line[key]) for key in ("difference", "low", "high"))
        better = names[line["better"]] if line["better"] else ""
        difference = Difference(a, b, line["metric"], value, low, high, better, line["over"])
        key = pair(a, b, line["metric"])
        if difference.over == "seeds" or key not in found:
            found[key] = difference
    return found


def pair(a: str, b: str, metric: str) -> tuple[frozenset[str], str]:
    """Return the key of Differences, the same for both orders."""
    return frozenset((a, b)), metric


def _read_csv(path: Path) -> Iterable[dict[str, str]]:
    """Read a file of the rule `pairs`; raise UserError where it is missing."""
    if not path.is_file():
        raise UserError(f"{path}: no such file. Fix: run sid-core pairs before the report.")
    return csv.DictReader(io.StringIO(path.read_text(encoding="utf-8")))


def base_name(run: Run) -> str:
    """Return the name of a run without its seed."""
    return run.name.removesuffix(f"-seed{run.seed}") if run.seed else run.name


def base_label(run: Run | Row) -> str:
    """Return the label of a run without its seed."""
    return run.label.removesuffix(f", seed {run.seed}")


def _sweep(config: Config) -> set[str]:
    """Name the settings of the sweep over LSG scales: the usual alpha and steps, and the first run of each scale."""
    usual, names = (config.distill.alpha, config.distill.num_steps), {}
    for run in runs(config):
        if (run.objective, run.strategy) == ("sid", "lsg") and (run.alpha or usual[0], run.num_steps) == usual:
            names.setdefault(run.teacher, base_name(run))
    return set(names.values())


def best(entries: list[Entry], kind: str, column: str) -> Entry | None:
    """Return the entry of a kind that is best in a metric."""
    sign = METRICS[column].sign
    return min((e for e in entries if e.kind == kind), key=lambda e: sign * e.estimate(column)[0], default=None)

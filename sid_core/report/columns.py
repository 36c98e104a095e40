"""Define the columns of the readable table, and round numbers to two digits of their error.

The error is the standard deviation over seeds where there are several, else the standard error of the metric.
"""

from collections.abc import Callable
from dataclasses import dataclass

from ..evaluation.metrics.catalogue import BENCHMARKS, METRICS, Metric
from ..evaluation.pairs import decimals as decimals_of
from .entries import Entry, best

MOST_PLACES = 4


def rounded(estimate: tuple[float, float | None] | None, decimals: int) -> str:
    """Return '33.71 ± 0.43': two digits of the error, the value to the same place; without an error, `decimals` places."""
    if estimate is None:
        return "—"
    value, error = estimate
    if not error:
        return f"{value:.{decimals}f}"
    decimals = decimals_of(error, MOST_PLACES)
    return f"{value:.{decimals}f} ± {error:.{decimals}f}"


def with_interval(entry: Entry, metric: Metric) -> str:
    """Return '3.29, 95 % interval 2.74 to 3.84', or `rounded` without an interval."""
    interval, estimate = entry.intervals.get(metric.key), entry.estimate(metric.key)
    if interval is None or interval[1] <= interval[0]:
        return rounded(estimate, metric.decimals)
    decimals = decimals_of((interval[1] - interval[0]) / 4, MOST_PLACES)
    return f"{estimate[0]:.{decimals}f}, 95 % interval {interval[0]:.{decimals}f} to {interval[1]:.{decimals}f}"


def _throughput(entry: Entry) -> str:
    """Return two digits: the machine's load changes the third."""
    value = _value(entry, "images_per_s")
    return "—" if value is None else f"{float(f'{value:.2g}'):,.10g}"


def protocol(entry: Entry) -> str:
    """Name the protocol of a row."""
    return entry.row.protocol if entry.comparable else f"{entry.row.protocol} (not comparable)"


@dataclass(frozen=True)
class Column:
    """A column of the readable table, sorted by `value`."""

    title: str
    text: Callable[[Entry], str]
    value: Callable[[Entry], float | str | None]
    key: str | None = None  # the column of summary.csv


def _value(entry: Entry, key: str) -> float | None:
    estimate = entry.estimate(key)
    return None if estimate is None else estimate[0]


def _metric(metric: Metric) -> Column:
    key, decimals = metric.key, metric.decimals
    return Column(metric.heading, lambda e: rounded(e.estimate(key), decimals), lambda e: _value(e, key), key)


def kimg(entry: Entry) -> str:
    """Return thousand images seen, as '9.6 of 12.8' where the weights of an earlier point were chosen."""
    seen, whole = entry.row.train_kimg, entry.row.whole_kimg
    if seen is None:
        return "—"
    return f"{seen:,.10g}" if whole is None else f"{seen:,.10g} of {whole:,.10g}"


RUN = Column("Run", lambda e: e.label, lambda e: e.label)


def main() -> list[Column]:
    """Return the columns of the first table."""
    return [
        RUN,
        *(_metric(metric) for metric in METRICS.values() if metric.shown != "further"),
        Column("NFE", lambda e: str(e.row.nfe or "—"), lambda e: e.row.nfe),
        Column("kimg", kimg, lambda e: e.row.train_kimg),
        Column("Images/s", _throughput, lambda e: _value(e, "images_per_s")),
    ]


def further(entries: list[Entry]) -> list[Column]:
    """Return the columns of the second table: further metrics that at least one entry has."""
    columns = [_metric(metric) for metric in METRICS.values() if metric.shown == "further"]
    columns += map(_metric, BENCHMARKS.values())
    columns.append(_metric(Metric("teacher_eps_error", "ε-error", "lower", 3)))
    return filled(columns, entries)


def filled(columns: list[Column], entries: list[Entry]) -> list[Column]:
    """Return the columns in which an entry has a value."""
    return [column for column in columns if any(column.value(entry) is not None for entry in entries)]


def is_best(entries: list[Entry], entry: Entry, key: str | None) -> bool:
    """Return whether an entry is the best generator in a headline metric."""
    return key in METRICS and METRICS[key].shown == "headline" and best(entries, "generator", key) is entry

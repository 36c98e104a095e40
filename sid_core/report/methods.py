"""Compare methods, each an objective, a strategy of guidance and a number of steps, with the first one."""

import statistics
from collections.abc import Callable
from dataclasses import dataclass

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ..config import scale_name
from ..evaluation.metrics.catalogue import METRICS
from .columns import kimg
from .curves import MARKERS
from .entries import Differences, Entry, grouped, pair
from .figures import Point, axis_title, draw_point, legend_below
from .labels import Label, place
from .theme import LIGHT, new_figure

COMPARED = ("fid", "clip", "recall")
ALIGNMENT = "κ₄ − κ₂"  # at the start the two scores differ by it times the guidance direction f(prompt) − f(empty)
COLOURS = (*LIGHT.lines, LIGHT.ink, LIGHT.faint)
PANELS = (("clip", "fid"), ("recall", "fid"), (ALIGNMENT, "clip"))


@dataclass(frozen=True)
class Comparison:
    """Settings by method, a table of their differences from the first, and a sentence for each metric."""

    methods: dict[str, list[Entry]]
    head: list[str]
    rows: list[tuple[str, list[str]]]  # name and cells of each setting
    verdicts: list[str]


def compare(entries: list[Entry], differences: Differences) -> Comparison | None:
    """Compare all generators with the first; None where all are of one method."""
    methods = grouped([entry for entry in entries if entry.kind == "generator"], lambda entry: entry.row.method)
    if len(methods) < 2:
        return None
    first, *others = settings = [entry for group in methods.values() for entry in group]
    columns = {
        "Method": [entry.label for entry in settings],
        ALIGNMENT: [f"{_value(entry, ALIGNMENT):g}" for entry in settings],
        "kimg": [kimg(entry) for entry in settings],
        "Passes": [_mean(entry, "network_passes", lambda passes: f"{passes / 1e6:,.3g} M") for entry in settings],
        "Time": [_mean(entry, "train_s", _time) for entry in settings],
        "GPU hours": [_mean(entry, "train_gpu_s", lambda seconds: f"{seconds / 3600:,.3g}") for entry in settings],
    }
    for key in COMPARED:
        cells = [_difference(entry, first, differences, key) for entry in others]
        columns[METRICS[key].heading] = [_number(first, key), *cells]
    filled = {title: cells for title, cells in columns.items() if set(cells) != {"—"}}
    lines = zip(*filled.values(), strict=True)
    rows = [(entry.name, list(cells)) for entry, cells in zip(settings, lines, strict=True)]
    return Comparison(methods, list(filled), rows, [_verdict(first, others, differences, key) for key in COMPARED])


def _value(entry: Entry, key: str) -> float:
    return entry.row.kappa_teacher - entry.row.kappa_fake_eval if key == ALIGNMENT else entry.estimate(key)[0]


def _number(entry: Entry, key: str) -> str:
    return "—" if entry.estimate(key) is None else f"{_value(entry, key):.{METRICS[key].decimals}f}"


def _mean(entry: Entry, key: str, text: Callable[[float], str]) -> str:
    values = [getattr(row, key) for row in entry.rows]
    return text(statistics.fmean(values)) if all(values) else "—"


def _time(seconds: float) -> str:
    return f"{seconds / 60:.1f} min" if seconds < 3600 else f"{seconds / 3600:,.1f} h"


def _difference(entry: Entry, first: Entry, differences: Differences, key: str) -> str:
    found = differences.get(pair(first.name, entry.name, key))
    return f"{_number(entry, key)} ({found.relative(entry.name) if found else 'not compared'})"


def _verdict(first: Entry, others: list[Entry], differences: Differences, key: str) -> str:
    """Write 'FID against SiD-LSG κ = 1.5: better with DMD …; no difference shown with SiD, Zero-CFG / ….'."""
    groups: dict[str, list[str]] = {"better": [], "worse": [], "no difference shown": [], "not compared": []}
    for entry in others:
        found = differences.get(pair(first.name, entry.name, key))
        words = {entry.name: "better", first.name: "worse", "": "no difference shown"}
        groups[words[found.better] if found else "not compared"].append(entry.label)
    parts = [f"{words} with {' / '.join(labels)}" for words, labels in groups.items() if labels]
    return f"{METRICS[key].title} against {first.label}: {'; '.join(parts)}."


def draw(methods: dict[str, list[Entry]]) -> Figure:
    """Plot FID over CLIP score and recall, and CLIP score over the alignment number; a line joins a method's scales."""
    with matplotlib.rc_context(LIGHT.rc()):
        figure = new_figure(11, 4.6)
        panels = figure.subplots(1, len(PANELS))
        styles = {name: (COLOURS[i % 8], MARKERS[(i + i // 8) % 6]) for i, name in enumerate(methods)}
        handles = [Line2D([], [], color=colour, marker=marker) for colour, marker in styles.values()]
        legend_below(figure, handles, list(styles))
        labels = [
            [label for name, group in methods.items() for label in _draw_method(axes, group, *styles[name], *keys)]
            for axes, keys in zip(panels, PANELS, strict=True)
        ]
        for axes, (x, y), texts in zip(panels, PANELS, labels, strict=True):
            axes.set_xlabel(f"alignment number {x}" if x == ALIGNMENT else axis_title(x))
            axes.set_ylabel(axis_title(y))
            axes.margins(0.12, 0.14)
            if texts:
                place(axes, texts)
        return figure


def _draw_method(axes: Axes, group: list[Entry], colour: str, marker: str, x: str, y: str) -> list[Label]:
    """Draw the points of a method; join its scales, the first run of each, and return their labels."""
    points: dict[float, Point] = {}
    for entry in group:
        if all(key == ALIGNMENT or entry.estimate(key) is not None for key in (x, y)):
            place_ = (_value(entry, key) for key in (x, y))
            point = Point(entry.name, *place_, "", entry.intervals.get(x), entry.intervals.get(y))
            draw_point(axes, point, colour, marker)
            if entry.row.alpha == group[0].row.alpha:
                of_fake = entry.row.strategy in ("short", "anti")
                points.setdefault(entry.row.kappa_fake_train if of_fake else entry.row.kappa_teacher, point)
    if x == ALIGNMENT or len(points) < 2:
        return []
    curve = sorted(points.items())
    axes.plot([p.x for _, p in curve], [p.y for _, p in curve], color=colour, linewidth=1.6, zorder=2)
    return [Label(((p.x, p.y),), scale_name(scale), colour, 8) for scale, p in curve]

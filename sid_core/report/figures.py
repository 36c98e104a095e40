"""Plot the trade-off between FID and CLIP score, with the curves and points that other figures share.

An artist's gid survives in the SVG file: `run:NAME` marks the artists of a run, `point:NAME` an invisible disc over its point,
which the page makes a button.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle, pairwise

import matplotlib
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..config import scale_name
from ..evaluation.metrics.catalogue import METRICS
from .columns import rounded
from .entries import Entry
from .labels import Label, place
from .theme import LIGHT, new_figure

Interval = tuple[float, float] | None
DASHES = (0, (5, 3))
LINESTYLES = ("-", (0, (4, 1.5)), (0, (1, 1)))
EXTRA_MARKERS = {"lsg": "D", "none": "D", "long": "^", "short": "v", "zero": "s", "anti": "<", "custom": "P"}


@dataclass(frozen=True)
class Point:
    """A value pair with its 95 % intervals, labelled `text`."""

    run: str
    x: float
    y: float
    text: str
    x_bar: Interval = None
    y_bar: Interval = None


def draw_point(axes: Axes, point: Point, colour: str, marker: str) -> None:
    """Plot one marker with its intervals as bars."""

    def lengths(value: float, bar: Interval) -> list[list[float]] | None:
        return bar and [[max(value - bar[0], 0)], [max(bar[1] - value, 0)]]

    axes.errorbar(
        point.x, point.y, xerr=lengths(point.x, point.x_bar), yerr=lengths(point.y, point.y_bar), color=colour, elinewidth=1.3,
        linestyle="none", zorder=3,
    )  # fmt: skip
    size, edge = 11 if marker == "*" else 6, axes.get_facecolor()
    style = {"color": colour, "markersize": size, "markeredgecolor": edge, "markeredgewidth": 0.8, "zorder": 3}
    axes.plot(point.x, point.y, marker, **style)
    axes.plot(point.x, point.y, "o", markersize=13, alpha=0, zorder=4, gid=f"point:{point.run}")


def draw_curve(
    axes: Axes, points: list[Point], title: str, colour: str, marker: str, linestyle: object = "-", size: float = 9.5
) -> list[Label]:
    """Plot points joined in their order; return labels for the points and for the curve."""
    for point in points:
        draw_point(axes, point, colour, marker)
    places = [(point.x, point.y) for point in points]
    axes.plot(*zip(*places, strict=True), color=colour, linewidth=1.8, linestyle=linestyle, zorder=2)
    labels = [Label((at,), point.text, colour, 8) for at, point in zip(places, points, strict=True) if point.text]
    middles = [((a[0] + b[0]) / 2, (a[1] + b[1]) / 2) for a, b in pairwise(places)]
    return [Label((*middles, *places), title, colour, size, bold=True), *labels]


def legend_below(figure: Figure, handles: Sequence[Artist], labels: Sequence[str]) -> None:
    """Put a legend below all panels, in up to four columns of the longest label's width."""
    column = 0.065 * max(map(len, labels)) + 0.6  # inches at this size
    columns = max(min(int(figure.get_figwidth() / column), 4), 1)
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False, fontsize=8)


def axis_title(key: str) -> str:
    """Return a metric's name and its better direction."""
    return f"{METRICS[key].title}  ({METRICS[key].better} is better)"


def fid_clip(entries: list[Entry]) -> Figure:
    """Plot FID, and beside it recall, against the CLIP score: generators, teacher, lower bounds, other strategies."""
    return _trade_off(entries, ("fid", "recall"), (11, 4.6))


def overview(entries: list[Entry]) -> Figure:
    """Plot FID against the CLIP score, small, for the head of the page."""
    return _trade_off(entries, ("fid",), (5.4, 3.9))


def _trade_off(entries: list[Entry], keys: tuple[str, ...], size: tuple[float, float]) -> Figure:
    with matplotlib.rc_context(LIGHT.rc()):
        figure = new_figure(*size)
        panels = figure.subplots(1, len(keys), sharex=True, squeeze=False)[0]
        labels = []
        for axes, key in zip(panels, keys, strict=True):
            axes.set_xlabel("CLIP score  (higher is better)")
            axes.set_ylabel(axis_title(key))
            shown = [entry for entry in entries if entry.estimate(key) is not None]
            labels.append(_curves(axes, shown, key) + _single_points(axes, shown, key) + _published(axes, shown, key))
            axes.margins(0.18, 0.14)
            _limits(axes, shown, key)
        for axes, texts in zip(panels, labels, strict=True):  # once the layout is final
            place(axes, [text for text in texts if not text.bold or axes is panels[0]])  # curves are named once
        return figure


def _curves(axes: Axes, entries: list[Entry], key: str) -> list[Label]:
    """Draw the sweep over LSG scales, and the teacher's over guidance scales, a curve for each solver and number of steps."""
    swept = [entry for entry in entries if entry.swept]
    labels = []
    if swept:
        steps = swept[0].row.steps
        title = "SiD-LSG, one step" if steps == 1 else f"SiD-LSG, {steps} steps"
        labels = draw_curve(axes, _points(swept, "κ = ", key), title, LIGHT.generator, "o")
    teachers = [entry for entry in entries if entry.kind == "teacher"]
    settings = sorted({(entry.row.steps, entry.row.solver) for entry in teachers}, reverse=True)
    for setting, linestyle in zip(settings, cycle(LINESTYLES), strict=False):
        group = [entry for entry in teachers if (entry.row.steps, entry.row.solver) == setting]
        title = group[0].label.rpartition(", CFG ")[0]
        labels += draw_curve(axes, _points(group, "CFG ", key), title, LIGHT.teacher, "s", linestyle)
    return labels


def _points(entries: list[Entry], symbol: str, key: str) -> list[Point]:
    """Return points by guidance scale, labelled by it; the first label includes the symbol."""
    entries = sorted(entries, key=lambda entry: entry.row.kappa_teacher)
    scales = [scale_name(entry.row.kappa_teacher) for entry in entries]
    texts = [symbol + scales[0], *scales[1:]]
    return [_point(entry, text, key) for entry, text in zip(entries, texts, strict=True)]


def _point(entry: Entry, text: str, key: str) -> Point:
    x, y = (entry.estimate(metric)[0] for metric in ("clip", key))
    return Point(entry.name, x, y, text, entry.intervals.get("clip"), entry.intervals.get(key))


def _single_points(axes: Axes, entries: list[Entry], key: str) -> list[Label]:
    """Plot the runs outside the sweep, labelled by name."""
    labels = []
    for entry in entries:
        if entry.kind == "generator" and not entry.swept:
            point = _point(entry, entry.label, key)
            draw_point(axes, point, LIGHT.extra, EXTRA_MARKERS.get(entry.row.strategy, "X"))  # unknown for some imports
            labels.append(Label(((point.x, point.y),), point.text, LIGHT.extra, 8))
    return labels


def _published(axes: Axes, entries: list[Entry], key: str) -> list[Label]:
    """Plot comparable published results, a curve for each teacher; the shortest training of each scale is on it."""
    labels = []
    published = [entry for entry in entries if entry.kind == "published" and entry.comparable]
    teachers = dict.fromkeys(entry.row.teacher for entry in published)
    published.sort(key=lambda entry: (entry.row.kappa_teacher, entry.row.train_kimg))
    for teacher, linestyle in zip(teachers, cycle(LINESTYLES[1:]), strict=False):
        group = [entry for entry in published if entry.row.teacher == teacher]
        curve = list({entry.row.kappa_teacher: entry for entry in reversed(group)}.values())[::-1]
        points = [_point(entry, "", key) for entry in curve]
        labels += draw_curve(axes, points, f"published, {teacher}", LIGHT.published, "*", linestyle, size=8)
        for entry in group:
            if entry not in curve:
                point = _point(entry, f"published, {entry.row.train_kimg / 1000:.1f}M images", key)
                draw_point(axes, point, LIGHT.published, "*")
                labels.append(Label(((point.x, point.y),), point.text, LIGHT.published, 6.5))
    return labels


def _limits(axes: Axes, entries: list[Entry], key: str) -> None:
    """Plot lines at the values of VAE reconstructions and real images, named at opposite ends (above both where close)."""
    limits = {entry.kind: entry for entry in entries if entry.kind in ("vae", "real")}
    heights = [entry.estimate(key)[0] for entry in limits.values()]
    if limits:
        axes.set_ylim(0, max(axes.get_ylim()[1], 1.1 * max(heights)))
    near = 0.05 * axes.get_ylim()[1]
    for kind, entry in limits.items():
        value = entry.estimate(key)
        x, align = (0.01, "left") if kind == "vae" else (0.99, "right")
        axes.axhline(value[0], color=LIGHT.faint, linewidth=1.1, linestyle=DASHES, zorder=1)
        text = f"{entry.label}: {METRICS[key].title} {rounded(value, METRICS[key].decimals)}"
        above = max(height for height in heights if height - value[0] < near)
        axes.annotate(
            text, (x, above), (0, 3), xycoords=("axes fraction", "data"), textcoords="offset points", ha=align, va="bottom",
            fontsize=8, color=LIGHT.faint,
        )  # fmt: skip

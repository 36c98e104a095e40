"""The trade-off between FID and CLIP score, and the training curves."""

import json
import math
from itertools import cycle, pairwise
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from ..config import Alarms, Config, Run, runs, scale_name
from ..errors import UserError
from .labels import Label, place
from .summary import Entry, base_name, rounded, steps
from .theme import Theme, new_figure

Curves = list[tuple[Run, dict[str, np.ndarray]]]  # points logged in training, by run
DASHES = (0, (5, 3))
MARKERS = "osD^vP"
EXTRA_MARKERS = {"lsg": "D", "none": "D", "long": "^", "short": "v", "custom": "P"}

# --- trade-off -------------------------------------------------------------------------------------------------------


def fid_clip(entries: list[Entry], theme: Theme, narrow: bool = False) -> Figure:
    """FID against CLIP score: the generators over LSG scales, the teacher over guidance scales, floors, other strategies."""
    with matplotlib.rc_context(theme.rc()):
        figure = new_figure(4.4, 4.8) if narrow else new_figure(6.6, 4.9)
        axes = figure.add_subplot()
        axes.set_xlabel("CLIP score  (higher is better)")
        axes.set_ylabel("FID  (lower is better)")
        labels = _curves(axes, entries, theme) + _single_points(axes, entries, theme)
        axes.margins(0.18, 0.14)
        _floors(axes, entries, theme)
        place(axes, labels)
        return figure


def _curves(axes: Axes, entries: list[Entry], theme: Theme) -> list[Label]:
    """The sweep over LSG scales, and the teacher's over guidance scales, a curve for each number of steps."""
    swept = [entry for entry in entries if entry.swept]
    labels = _curve(axes, swept, "SiD-LSG, " + steps(swept[0].row), "κ", theme.generator, "o") if swept else []
    teachers = [entry for entry in entries if entry.kind == "teacher"]
    counts = sorted({entry.row.nfe for entry in teachers}, reverse=True)
    for nfe, strength in zip(counts, np.linspace(1, 0.65, len(counts)), strict=True):
        group = [entry for entry in teachers if entry.row.nfe == nfe]
        colour = _mixed(theme.teacher, theme.paper, strength)
        labels += _curve(axes, group, "teacher, " + steps(group[0].row), "CFG", colour, "s")
    return labels


def _mixed(colour: str, paper: str, strength: float) -> str:
    """A colour paled towards the paper; unlike transparency it hides what lies below."""
    return to_hex(strength * np.array(to_rgb(colour)) + (1 - strength) * np.array(to_rgb(paper)))


def _curve(axes: Axes, entries: list[Entry], title: str, symbol: str, colour: str, marker: str) -> list[Label]:
    """Connect entries by guidance scale; label the points with it and the curve with `title`."""
    entries = sorted(entries, key=lambda entry: entry.row.kappa_teacher)
    points = [_point(axes, entry, colour, marker) for entry in entries]
    axes.plot(*zip(*points, strict=True), color=colour, linewidth=1.8, zorder=2)
    scales = [scale_name(entry.row.kappa_teacher) for entry in entries]
    scales[0] = f"{symbol} {scales[0]}"
    labels = [Label((point,), text, colour, 8) for point, text in zip(points, scales, strict=True)]
    middles = [((a[0] + b[0]) / 2, (a[1] + b[1]) / 2) for a, b in pairwise(points)]
    return [Label((*middles, *points), title, colour, 9.5, bold=True), *labels]


def _point(axes: Axes, entry: Entry, colour: str, marker: str) -> tuple[float, float]:
    """One marker with its error bars; returns (CLIP, FID)."""
    (x, x_error), (y, y_error) = entry.estimate("clip"), entry.estimate("fid")
    axes.errorbar(
        x, y, xerr=x_error, yerr=y_error, color=colour, marker=marker, markersize=11 if marker == "*" else 6,
        markeredgecolor=axes.get_facecolor(), markeredgewidth=0.8, elinewidth=1.1, capsize=2.5, linestyle="none", zorder=3,
    )  # fmt: skip
    return x, y


def _single_points(axes: Axes, entries: list[Entry], theme: Theme) -> list[Label]:
    """Runs outside the sweep, and published results of the same protocol."""
    labels = []
    for entry in entries:
        row = entry.row
        if entry.kind == "generator" and not entry.swept:
            point = _point(axes, entry, theme.extra, EXTRA_MARKERS[row.strategy])
            labels.append(Label((point,), entry.name, theme.extra, 8))
        elif entry.kind == "published" and entry.comparable:
            point = _point(axes, entry, theme.published, "*")
            text = f"published {row.teacher}\nκ {scale_name(row.kappa_teacher)}, {row.train_kimg / 1000:.1f}M images"
            labels.append(Label((point,), text, theme.published, 6.5))
    return labels


def _floors(axes: Axes, entries: list[Entry], theme: Theme) -> None:
    """Horizontal lines at the FID of the VAE's reconstructions and of real images, named at opposite ends of the axis."""
    floors = [entry for entry in entries if entry.kind in ("vae", "real")]
    if floors:
        axes.set_ylim(bottom=0)
    for entry in floors:
        fid = entry.estimate("fid")
        name, x, align = ("VAE floor", 0.01, "left") if entry.kind == "vae" else ("real images", 0.99, "right")
        axes.axhline(fid[0], color=theme.faint, linewidth=1.1, linestyle=DASHES, zorder=1)
        text = f"{name}: FID {rounded(fid, 2)}, CLIP {rounded((entry.estimate('clip')[0], None), 3)}"
        axes.annotate(
            text, (x, fid[0]), (0, 3), xycoords=("axes fraction", "data"), textcoords="offset points", ha=align, va="bottom",
            fontsize=8, color=theme.faint,
        )  # fmt: skip


# --- training --------------------------------------------------------------------------------------------------------

PANELS = (  # key in training.jsonl, title, what it is, logarithmic
    ("score_gap", "Score gap", "RMS of f_teacher − f_fake", True),
    ("latent_std", "Latent spread", "std of x_g, 1 is healthy", False),
    ("fake_loss", "Fake score's loss", "squared error per latent element", True),
    ("teacher_residual", "Teacher residual", "mean of |f_teacher − x_g|", True),
    ("fake_grad_norm", "Fake score's gradient", "norm before the optimizer", True),
    ("generator_grad_norm", "Generator's gradient", "norm before the optimizer", True),
    ("images_per_s", "Speed", "images per second", False),
)


def read_curves(config: Config, folder: Path) -> Curves:
    """Every run with its logged points: 'nimg', 'skipped' and the keys of PANELS, each (points,) float64; a null is NaN.

    Raises:
        UserError: a training.jsonl is missing, empty or damaged; the message names the line.
    """
    keys = ["nimg", "skipped", *(panel[0] for panel in PANELS)]
    return [(run, _read_curve(folder / "runs" / run.name / "training.jsonl", keys)) for run in runs(config)]


def _read_curve(path: Path, keys: list[str]) -> dict[str, np.ndarray]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; run the distillation again") from None
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path}: not UTF-8 ({error.reason} at byte {error.start}); run the distillation again"
        ) from None
    points = []
    for number, line in enumerate(lines, 1):
        try:
            point = json.loads(line)
            points.append([math.nan if point[key] is None else float(point[key]) for key in keys])
        except (json.JSONDecodeError, KeyError, TypeError, ValueError) as error:
            problem = f"no {error}" if isinstance(error, KeyError) else error
            raise UserError(
                f"{path}, line {number}: not a logged point ({problem}); run the distillation again"
            ) from None
    if not points:
        raise UserError(f"{path}: empty; run the distillation again")
    return dict(zip(keys, np.array(points).T, strict=True))


def training(alarms: Alarms, curves: Curves, theme: Theme, narrow: bool = False) -> Figure:
    """Health of every run against thousand images seen; the alarms' limits dashed, a key in the last panel."""
    limits = {"score_gap": [alarms.score_gap_max], "latent_std": [alarms.latent_std_min, alarms.latent_std_max]}
    with matplotlib.rc_context(theme.rc() | {"font.size": 8, "lines.markersize": 4.5}):
        figure = new_figure(4.6, 9.4) if narrow else new_figure(11, 5.4)
        panels = figure.subplots(*((4, 2) if narrow else (2, 4)), sharex=True).ravel()
        styles = _styles(curves, theme)
        for axes, (key, title, subtitle, logarithmic) in zip(panels, PANELS, strict=False):
            for run, points in curves:
                axes.plot(points["nimg"] / 1000, points[key], markevery=[-1], **styles[run.name])
            for limit in limits.get(key, []):
                _limit(axes, limit, theme)
            _scale(axes, logarithmic)
            axes.set_title(title, loc="left", fontsize=9.5, fontweight="bold", pad=16)
            above = {"xycoords": "axes fraction", "textcoords": "offset points"}
            axes.annotate(subtitle, (0, 1), (0, 5), fontsize=7.5, color=theme.faint, **above)
        for axes in panels[5:7] if narrow else panels[3:7]:  # the lowest of each column
            axes.set_xlabel("thousand images seen")
            axes.tick_params(labelbottom=True)
        _key(panels[7], styles, curves)
        return figure


def _limit(axes: Axes, limit: float, theme: Theme) -> None:
    """An alarm's limit."""
    axes.axhline(limit, color=theme.faint, linewidth=1.1, linestyle=DASHES)
    axes.annotate(
        f"alarm {limit:g}", (1, limit), (0, 2), xycoords=("axes fraction", "data"), textcoords="offset points",
        ha="right", va="bottom", fontsize=7, color=theme.faint,
    )  # fmt: skip


def _scale(axes: Axes, logarithmic: bool) -> None:
    """A linear axis from 0, or a logarithmic one: few span a decade, so that 1, 2 and 5 of each are named."""
    if logarithmic:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_locator(NullLocator())
    else:
        axes.set_ylim(bottom=0)


def _styles(curves: Curves, theme: Theme) -> dict[str, dict]:
    """Colour and end marker by setting (seeds share them), a dashed line from the seventh on."""
    names = list(dict.fromkeys(base_name(run) for run, _ in curves))
    looks = dict(zip(names, cycle(zip(theme.lines, MARKERS, strict=True)), strict=False))
    several = len(names) < len(curves)
    return {
        run.name: {
            "color": looks[base_name(run)][0],
            "marker": looks[base_name(run)][1],
            "linestyle": "-" if names.index(base_name(run)) < len(theme.lines) else (0, (2, 1)),
            "alpha": 0.75 if several else 1.0,
            "linewidth": 0.9 if several else 1.3,
        }
        for run, _ in curves
    }


def _key(axes: Axes, styles: dict[str, dict], curves: Curves) -> None:
    """What line is what, in a panel of its own."""
    axes.set_axis_off()
    handles = {base_name(run): Line2D([], [], **styles[run.name] | {"linewidth": 2, "alpha": 1}) for run, _ in curves}
    seeds = len({run.seed for run, _ in curves})
    title = f"Runs, a line for each of {seeds} seeds" if seeds > 1 else "Runs" if curves else "Nothing was trained here"
    legend = axes.legend(
        handles.values(), handles.keys(), loc="upper left", frameon=False, fontsize=8.5, title=title, handlelength=2.6
    )
    legend.set_alignment("left")
    legend.get_title().set_fontweight("bold")

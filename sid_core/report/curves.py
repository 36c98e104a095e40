"""Read and plot the training curves of every run."""

import json
import math

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter, FuncFormatter, LogLocator, MaxNLocator, NullLocator

from ..config import Alarms, Config, Run, runs
from ..errors import UserError
from ..pipeline.paths import Row, State
from .entries import base_label, base_name
from .theme import LIGHT, new_figure

Curves = list[tuple[Run, dict[str, np.ndarray]]]  # logged points by run
DASHES = (0, (5, 3))
MARKERS = "osD^vP"

PANELS = (  # key in training.jsonl, title, subtitle, logarithmic
    ("score_gap", "Score gap", "RMS of f_teacher − f_fake", True),
    ("latent_std", "Latent spread", "std of x_g, 1 is healthy", False),
    ("fake_loss", "Fake score's loss", "squared error per latent element", True),
    ("teacher_residual", "Teacher residual", "mean of |f_teacher − x_g|", True),
    ("fake_grad_norm", "Fake score's gradient", "norm before the optimizer", True),
    ("generator_grad_norm", "Generator's gradient", "norm before the optimizer", True),
    ("images_per_s", "Speed", "images per second", False),
)
GAN_PANEL = ("discriminator_accuracy", "Discriminator", "accuracy, 0.5 sees no difference", False)
KEYS = ("nimg", "elapsed_s", "skipped", "generator_loss", *(panel[0] for panel in PANELS))
PROXIES = ("fid_proxy", "clip_proxy")  # at some points, where distill.proxy_samples is set
OPTIONAL = ("network_passes", "discriminator_accuracy", *PROXIES)  # an earlier version did not count passes


def read_curves(config: Config, trainings: dict[str, Row | State]) -> Curves:
    """Read the logged points of every run: KEYS and OPTIONAL, each (points,) float64, NaN where absent or null."""
    return [(run, _read_curve(trainings[run.name])) for run in runs(config) if run.name in trainings]


def _read_curve(training: Row | State) -> dict[str, np.ndarray]:
    path = training.training
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"{path}: no such file. Fix: rerun distill.") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 at byte {error.start}. Fix: rerun distill.") from None
    if isinstance(training, State):
        text = text[: text.rfind("\n")]  # a running process may be writing the last line
    points = []
    for number, line in enumerate(text.splitlines(), 1):
        try:
            point = json.loads(line)
            values = [*(point[key] for key in KEYS), *(point.get(key) for key in OPTIONAL)]
            points.append([math.nan if value is None else float(value) for value in values])
        except (json.JSONDecodeError, KeyError, TypeError, ValueError) as error:
            problem = f"no {error}" if isinstance(error, KeyError) else error
            raise UserError(f"{path}, line {number}: not a logged point ({problem}). Fix: rerun distill.") from None
    if not points:
        raise UserError(f"{path}: empty. Fix: rerun distill.")
    return dict(zip((*KEYS, *OPTIONAL), np.array(points).T, strict=True))


def training(alarms: Alarms, curves: Curves) -> Figure:
    """Plot the curves of every run against images seen, as MLflow does; alarm limits are dashed, the legend is the last panel."""
    limits = {"score_gap": [alarms.score_gap_max], "latent_std": [alarms.latent_std_min, alarms.latent_std_max]}
    limits["discriminator_accuracy"] = [alarms.discriminator_accuracy_max]
    shown = [*PANELS, *[GAN_PANEL] * any(run.adversarial is not None for run, _ in curves)]
    columns = len(shown) // 2 + 1
    with matplotlib.rc_context(LIGHT.rc() | {"font.size": 8, "lines.markersize": 4.5}):
        figure = new_figure(2.75 * columns, 5.4)
        panels = figure.subplots(2, columns, sharex=True).ravel()
        styles = _styles(curves)
        for axes, (key, title, subtitle, logarithmic) in zip(panels, shown, strict=False):
            for run, points in curves:
                style = {"markevery": [-1], "gid": f"run:{base_name(run)}", **styles[run.name]}
                axes.plot(points["nimg"], points[key], **style)
            for limit in limits.get(key, []):
                axes.axhline(limit, color=LIGHT.faint, linewidth=1.1, linestyle=DASHES)
                axes.annotate(
                    f"alarm {limit:g}", (1, limit), (0, 2), xycoords=("axes fraction", "data"),
                    textcoords="offset points", ha="right", va="bottom", fontsize=7, color=LIGHT.faint,
                )  # fmt: skip
            axes.margins(y=0.08)
            _scale(axes, logarithmic)
            axes.set_title(title, loc="left", fontsize=9.5, fontweight="bold", pad=16)
            above = {"xycoords": "axes fraction", "textcoords": "offset points"}
            axes.annotate(subtitle, (0, 1), (0, 5), fontsize=7.5, color=LIGHT.faint, **above)
        for axes in panels[len(shown) - columns : len(shown)]:  # the lowest of each column
            axes.set_xlabel("images seen")
            axes.xaxis.set_major_formatter(EngFormatter(sep=""))
            axes.tick_params(labelbottom=True)
        for axes in panels[len(shown) :]:
            axes.set_axis_off()
        _legend(panels[len(shown)], styles, curves)
        return figure


def _scale(axes: Axes, logarithmic: bool) -> None:
    """Set a linear axis from 0, or a logarithmic one with ticks at 1, 2 and 5 of each decade (round numbers within one)."""
    if not logarithmic:
        axes.set_ylim(bottom=0)
        return
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)) if high > 8 * low else MaxNLocator(5, steps=(1, 2, 5, 10)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_locator(NullLocator())


def _styles(curves: Curves) -> dict[str, dict]:
    """Return styles by run: seeds of a setting share colour and end marker; lines are dashed from the seventh on."""
    names = list(dict.fromkeys(base_name(run) for run, _ in curves))
    shared = {"alpha": 0.75, "linewidth": 0.9} if len(names) < len(curves) else {"alpha": 1.0, "linewidth": 1.3}
    styles = {}
    for run, _ in curves:
        again, at = divmod(names.index(base_name(run)), len(LIGHT.lines))
        linestyle = (0, (2, 1)) if again else "-"
        styles[run.name] = {"color": LIGHT.lines[at], "marker": MARKERS[at], "linestyle": linestyle, **shared}
    return styles


def _legend(axes: Axes, styles: dict[str, dict], curves: Curves) -> None:
    labels = {base_name(run): base_label(run) for run, _ in curves}
    handles = {base_name(run): Line2D([], [], **styles[run.name] | {"linewidth": 2, "alpha": 1}) for run, _ in curves}
    seeds = len({run.seed for run, _ in curves})
    title = f"Runs, a line for each of {seeds} seeds" if seeds > 1 else "Runs" if curves else "Nothing was trained here"
    style = {"loc": "upper left", "frameon": False, "fontsize": 8.5, "handlelength": 2.6}
    legend = axes.legend(handles.values(), labels.values(), title=title, **style)
    legend.set_alignment("left")
    legend.get_title().set_fontweight("bold")
    for name, handle, text in zip(labels, legend.legend_handles, legend.texts, strict=True):
        handle.set_gid(f"run:{name}")
        text.set_gid(f"run:{name}")


def exceeds_limit(alarms: Alarms, run: Run, points: dict[str, np.ndarray]) -> np.ndarray:
    """Return (points,) bool: the logged points of a run after the warm-up that exceed a limit of the alarms."""
    gap, std, loss = (points[key] for key in ("score_gap", "latent_std", "generator_loss"))
    with np.errstate(invalid="ignore"):
        inside = (np.abs(gap) <= alarms.score_gap_max) & (np.abs(loss) <= alarms.generator_loss_max)
        inside &= (std >= alarms.latent_std_min) & (std <= alarms.latent_std_max)
        if run.adversarial:
            learns_alone = points["nimg"] < run.adversarial.start_nimg
            inside &= learns_alone | (points["discriminator_accuracy"] <= alarms.discriminator_accuracy_max)
    return ~inside & (points["nimg"] >= alarms.warmup_nimg)

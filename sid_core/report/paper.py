"""Plot the paper's other figures from CSV files: scores over scales, convergence."""

import csv
import io

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, LogLocator

from ..errors import UserError
from .curves import MARKERS, PROXIES, Curves
from .entries import base_label, base_name
from .figures import legend_below
from .theme import LIGHT, new_figure

TITLES = {"fid": "FID, lower is better", "clip": "CLIP score, higher is better"}
APART = {"nfe": lambda steps: "one step" if steps == 1 else f"{steps:g} steps", "alpha": lambda alpha: f"α {alpha:g}"}


class NoData(UserError):
    """Raised where an experiment has no data for a figure."""


def by_setting(summary: pd.DataFrame) -> pd.DataFrame:
    """Average `fid` and `clip` of summary.csv over seeds, and sort by guidance scale (`scale`), the sweep before extra runs.

    `fid_low` to `fid_high` is the range of the seeds, or the 95 % interval of a single one. `apart` names the steps and alpha
    that differ from most generators': curves join rows of equal `apart` only.
    """
    suffixes = ("-seed" + summary["seed"].fillna(0).astype(int).astype(str)).where(summary["seed"] > 0, "")
    names = [name.removesuffix(suffix) for name, suffix in zip(summary["run"], suffixes, strict=True)]
    groups = summary.assign(run=names).groupby("run", sort=False)
    table = groups.first()
    several = groups.size() > 1
    for key in TITLES:
        table[key] = groups[key].mean()
        table[f"{key}_low"] = groups[key].min().where(several, table[f"{key}_low"])
        table[f"{key}_high"] = groups[key].max().where(several, table[f"{key}_high"])
    table["scale"] = table["kappa_teacher"]
    table["apart"] = ""
    for key, in_words in APART.items():
        usual = table.loc[table["kind"] == "generator", key].mode().tolist()[:1]  # empty if unknown for all
        table["apart"] += ["" if value in usual or np.isnan(value) else f", {in_words(value)}" for value in table[key]]
    return table.reset_index().sort_values("scale", kind="stable")


def scales(summary: pd.DataFrame) -> Figure:
    """Plot FID and CLIP against the guidance scale, a curve for each teacher, with comparable published rows."""
    table = by_setting(summary)
    table = table[(table["strategy"] == "lsg") & table["kind"].isin(["generator", "published"])]
    if not (table["kind"] == "generator").any():
        raise NoData("no run follows the LSG strategy")
    with matplotlib.rc_context(LIGHT.rc()):
        figure = new_figure(8.8, 2.8)
        for axes, key in zip(figure.subplots(1, 2, sharex=True), TITLES, strict=True):
            _over_scales(axes, table[table["not_comparable"].isna()], key)
            axes.set_title(TITLES[key], loc="left", fontsize=9.5, fontweight="bold")
            axes.set_xlabel("guidance scale κ")
        return figure


def _over_scales(axes: Axes, table: pd.DataFrame, key: str) -> None:
    """Plot one panel; the first run of each scale is on the curve, further ones are hollow."""
    styles = {"generator": (LIGHT.generator, "-", ""), "published": (LIGHT.published, (0, (4, 1.5)), "published, ")}
    groups = table.groupby(["kind", "teacher", "apart"], sort=False)
    for number, ((kind, teacher, apart), group) in enumerate(groups):
        colour, linestyle, prefix = styles[kind]
        curve = group.drop_duplicates("scale")
        marker = MARKERS[number % len(MARKERS)]
        axes.plot(
            curve["scale"], curve[key], color=colour, linestyle=linestyle, linewidth=1.6, label=prefix + teacher + apart,
            marker=marker, markersize=5.5,
        )  # fmt: skip
        axes.vlines(group["scale"], group[f"{key}_low"], group[f"{key}_high"], color=colour, linewidth=1.1)
        further = group.drop(curve.index)
        axes.plot(further["scale"], further[key], marker, color=colour, markerfacecolor="none", markersize=5.5)
    if key == "fid":
        axes.set_ylim(bottom=0)
    axes.legend(frameon=False, fontsize=8, loc="best")


def to_convergence_csv(curves: Curves) -> str:
    """Write CSV text of the proxy evaluations: run, setting and label (without its seed), kimg, proxies, network passes."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["run", "setting", "label", "kimg", *PROXIES, "network_passes"])
    for run, points in curves:
        columns = (points[key] for key in ("nimg", "network_passes", *PROXIES))
        for nimg, passes, *proxies in zip(*columns, strict=True):
            if not np.isnan(proxies).all():
                writer.writerow([run.name, base_name(run), base_label(run), nimg / 1000, *proxies, passes])
    return text.getvalue()


def convergence(table: pd.DataFrame) -> Figure:
    """Plot the proxy metrics of held-out captions against images seen, and where runs differ in it, against their compute."""
    if table.empty:
        raise NoData("nothing was measured during training, as distill.proxy_samples is 0")
    table = table.assign(nimg=1000 * table["kimg"])
    across = {"nimg": "images seen"}
    if (table["network_passes"] / table["nimg"]).round(6).nunique() > 1:
        across["network_passes"] = "network passes in training"
    with matplotlib.rc_context(LIGHT.rc()):
        figure = new_figure(8.8, 3.6 * len(across))
        panels = figure.subplots(len(across), 2, sharex="row", squeeze=False)
        for row, x in zip(panels, across, strict=True):
            for axes, key, title in zip(row, PROXIES, TITLES.values(), strict=True):
                _over_training(axes, table, x, key)
                axes.set_title(f"{title} (proxy)", loc="left", fontsize=9.5, fontweight="bold")
                axes.set_xlabel(across[x])
        legend_below(figure, *panels[0][0].get_legend_handles_labels())
        return figure


def _over_training(axes: Axes, table: pd.DataFrame, x: str, key: str) -> None:
    """Plot one panel on a logarithmic axis, a line for each run; seeds of a setting share colour and marker."""
    for number, (setting, runs) in enumerate(table.groupby("setting", sort=False)):
        style = {"color": LIGHT.lines[number % 6], "marker": MARKERS[number % 6], "markersize": 4}
        style |= {"linewidth": 1.2, "linestyle": "-" if number < 6 else (0, (2, 1))}
        for position, (_, points) in enumerate(runs.groupby("run", sort=False)):
            label = points["label"].iloc[0] if position == 0 else None
            axes.plot(points[x], points[key], label=label, gid=f"run:{setting}", **style)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.minorticks_off()

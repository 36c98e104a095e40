"""What a precision does to the gradients: the table and the figure of `sid-core check-precision`, from its CSV file."""

import csv
import math
from itertools import cycle
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..storage.files import write_text
from .paper import NoData
from .theme import LIGHT, new_figure, to_png, write_png

MARKERS = "osD^vP"


def render(folder: Path) -> None:
    """Write gradients.md and gradients.png beside `folder`/gradients.csv."""
    rows = read(folder / "gradients.csv")
    write_text(folder / "gradients.md", to_markdown(rows))
    write_png(folder / "gradients.png", to_png(draw(rows)))


def read(path: Path) -> list[dict[str, str]]:
    """The lines of gradients.csv."""
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def of_experiment(folder: Path) -> list[dict[str, str]]:
    """The lines of `folder`/precision/gradients.csv; none where there is no such file."""
    path = folder / "precision" / "gradients.csv"
    return read(path) if path.is_file() else []


def cells(rows: list[dict[str, str]]) -> list[list[str]]:
    """Network, precision, cosine, relative error and norm ratio over all noise levels: the last row of each pair."""
    whole = {(row["network"], row["precision"]): row for row in rows}
    return [
        [
            *pair,
            f"{float(row['cosine']):.5f}",
            f"{100 * float(row['relative_error']):.1f} %",
            f"{float(row['norm_ratio']):.4f}",
        ]
        for pair, row in whole.items()
    ]


def to_markdown(rows: list[dict[str, str]]) -> str:
    """A line for each network, precision and bin of t; the last bin of each precision is the whole range."""
    lines = [
        "| network | precision | t | cosine | 1 − cosine | relative error | norm ratio |",
        "|---|---|---|--:|--:|--:|--:|",
    ]
    for network in dict.fromkeys(row["network"] for row in rows):
        for row in (row for row in rows if row["network"] == network):
            cosine, error, ratio = (float(row[key]) for key in ("cosine", "relative_error", "norm_ratio"))
            lines.append(
                f"| {network} | {row['precision']} | {row['t_low']}–{int(row['t_high']) - 1} | {cosine:.5f} | {1 - cosine:.1e} "
                f"| {error:.2e} | {ratio:.4f} |"
            )
    return "\n".join(lines) + "\n"


def draw(rows: list[dict[str, str]], narrow: bool = False) -> Figure:
    """Relative error against t on a logarithmic axis, a panel for each network and a line for each precision.

    Raises:
        NoData: there is no row.
    """
    if not rows:
        raise NoData(
            "no precision/gradients.csv here, which sid-core check-precision --out results/EXPERIMENT/precision writes"
        )
    networks = list(dict.fromkeys(row["network"] for row in rows))
    with matplotlib.rc_context(LIGHT.rc()):
        figure = new_figure(4.4, 2.6 * len(networks)) if narrow else new_figure(6.6, 3.2)
        shape = (len(networks), 1) if narrow else (1, len(networks))
        panels = figure.subplots(*shape, sharex=True, sharey=True, squeeze=False).ravel()
        for axes, network in zip(panels, networks, strict=True):
            _panel(axes, [row for row in rows if row["network"] == network])
            axes.set_title(network, fontsize=9, loc="left")
            axes.set_xlabel("noise level t")
        panels[0].set_ylabel("relative error of the gradient")
        figure.legend(
            *panels[0].get_legend_handles_labels(), loc="outside upper right", ncols=4, frameon=False, fontsize=8
        )
        return figure


def _panel(axes: Axes, rows: list[dict[str, str]]) -> None:
    axes.set_yscale("log")
    colours, markers = cycle(LIGHT.lines), cycle(MARKERS)
    for precision in dict.fromkeys(row["precision"] for row in rows):
        *bins, whole = (row for row in rows if row["precision"] == precision)
        bins = bins or [whole]
        points = [((int(row["t_low"]) + int(row["t_high"])) / 2, float(row["relative_error"])) for row in bins]
        points = [(t, error) for t, error in points if math.isfinite(error) and error > 0]
        colour, marker = next(colours), next(markers)
        if points:
            axes.plot(
                *zip(*points, strict=True), color=colour, marker=marker, markersize=4, linewidth=1.4, label=precision
            )

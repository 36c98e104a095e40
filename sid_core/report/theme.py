"""Define the style of figures, and render them to PNG and SVG.

Colours are Okabe and Ito's, safe for the colour-blind, darker for small text. Each has a name, so that the page can replace it
by the variable `--figure-NAME` of page.css in dark mode. Figures use matplotlib's object-oriented interface on Agg, without
display or shared state, and no mathtext: a '$' stays a dollar.
"""

import io
from dataclasses import dataclass
from pathlib import Path

import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ..storage.files import atomic_path

DPI = 200


@dataclass(frozen=True)
class Theme:
    """Colours of background, text and series."""

    paper: str = "#ffffff"
    ink: str = "#1b1f24"
    faint: str = "#5f6770"  # secondary text
    grid: str = "#e8eaed"
    generator: str = "#0072B2"
    teacher: str = "#C65300"
    extra: str = "#00805E"
    published: str = "#A5487C"
    lines: tuple[str, ...] = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9")  # of training curves

    def rc(self) -> dict:
        """Return matplotlib settings."""
        paper = dict.fromkeys(("axes.facecolor", "figure.facecolor", "savefig.facecolor"), self.paper)
        ink = dict.fromkeys(("axes.labelcolor", "text.color", "xtick.labelcolor", "ytick.labelcolor"), self.ink)
        faint = dict.fromkeys(("axes.edgecolor", "xtick.color", "ytick.color"), self.faint)
        grid = {"axes.axisbelow": True, "axes.grid": True, "grid.color": self.grid, "grid.linewidth": 0.7}
        off = ("axes.spines.top", "axes.spines.right", "text.parse_math", "axes.formatter.use_mathtext")
        return {"font.size": 9} | paper | ink | faint | grid | dict.fromkeys(off, False)

    def names(self) -> dict[str, str]:
        """Name each colour by its hex digits as in an SVG file."""
        lines = {colour.lower(): f"line-{number}" for number, colour in enumerate(self.lines)}
        return lines | {value.lower(): name for name, value in vars(self).items() if name != "lines"}


LIGHT = Theme()


@dataclass(frozen=True)
class RenderedFigure:
    """A figure as PNG and SVG."""

    png: bytes
    svg: str

    @classmethod
    def from_figure(cls, figure: Figure) -> "RenderedFigure":
        """Render a figure in both formats."""
        return cls(to_png(figure), to_svg(figure))


def to_png(figure: Figure) -> bytes:
    """Render a figure as PNG."""
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=figure.dpi)
    figure.set_layout_engine("none")  # a second rendering must not move anything
    return data.getvalue()


def to_svg(figure: Figure) -> str:
    """Render a figure as SVG with text as text; equal figures give equal files."""
    data = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "sid_core"}):
        figure.savefig(data, format="svg", metadata={"Date": None})
    return data.getvalue()


def write_png(path: Path, data: bytes) -> None:
    """Write a rendered figure atomically."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def new_figure(width: float, height: float, layout: str | None = "constrained") -> Figure:
    """Open a figure on Agg; sizes in inches."""
    figure = Figure(figsize=(width, height), dpi=DPI, layout=layout)
    FigureCanvasAgg(figure)
    return figure

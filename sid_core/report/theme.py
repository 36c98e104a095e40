"""How figures look, and how they become PNG and SVG files.

Colours: Okabe and Ito's, safe for the colour-blind, darker where they colour small text. Every colour has a name, so that the
page shows the same drawing on dark paper: there each is replaced by the variable `--figure-NAME` of page.css. matplotlib's
object-oriented interface on Agg: no display, no state shared between figures. Text never goes through mathtext, so that a '$'
stays a dollar.
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
    """Colours of paper and ink, and one for each thing that is drawn."""

    paper: str
    ink: str
    faint: str  # secondary text
    grid: str
    generator: str
    teacher: str
    extra: str
    published: str
    lines: tuple[str, ...]  # one a run in the training curves

    def rc(self) -> dict:
        """matplotlib settings."""
        return {
            "font.size": 9,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.edgecolor": self.faint,
            "axes.labelcolor": self.ink,
            "axes.facecolor": self.paper,
            "axes.axisbelow": True,
            "axes.grid": True,
            "grid.color": self.grid,
            "grid.linewidth": 0.7,
            "figure.facecolor": self.paper,
            "savefig.facecolor": self.paper,
            "text.color": self.ink,
            "text.parse_math": False,
            "xtick.color": self.faint,
            "ytick.color": self.faint,
            "xtick.labelcolor": self.ink,
            "ytick.labelcolor": self.ink,
            "axes.formatter.use_mathtext": False,
        }

    def names(self) -> dict[str, str]:
        """The name of each colour, by its hex digits as an SVG file has them."""
        lines = {colour.lower(): f"line-{number}" for number, colour in enumerate(self.lines)}
        return lines | {value.lower(): name for name, value in vars(self).items() if name != "lines"}


OKABE_ITO = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9")
LIGHT = Theme("#ffffff", "#1b1f24", "#5f6770", "#e8eaed", "#0072B2", "#C65300", "#00805E", "#A5487C", OKABE_ITO)


@dataclass(frozen=True)
class Picture:
    """One rendered figure."""

    png: bytes
    svg: str

    @classmethod
    def of(cls, figure: Figure) -> "Picture":
        """Render a figure in both formats."""
        return cls(to_png(figure), to_svg(figure))


def to_png(figure: Figure) -> bytes:
    """Render a figure."""
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=figure.dpi)
    figure.set_layout_engine("none")  # it lies where it lies, also when it is drawn again
    return data.getvalue()


def to_svg(figure: Figure) -> str:
    """The figure as SVG, text as text; the same figure gives the same file."""
    data = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "sid_core"}):
        figure.savefig(data, format="svg", metadata={"Date": None})
    return data.getvalue()


def write_png(path: Path, data: bytes) -> None:
    """Write a rendered figure atomically."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def new_figure(width: float, height: float, layout: str | None = "constrained") -> Figure:
    """A figure on Agg; sizes in inches."""
    figure = Figure(figsize=(width, height), dpi=DPI, layout=layout)
    FigureCanvasAgg(figure)
    return figure

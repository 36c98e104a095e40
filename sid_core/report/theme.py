"""How figures look, on light and on dark paper, and how they become PNG files.

Colours: Okabe and Ito's, safe for the colour-blind, darker where they colour small text. matplotlib's object-oriented interface
on Agg: no display, no state shared between figures. Text never goes through mathtext, so that a '$' stays a dollar.
"""

import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ..files import atomic_path

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


OKABE_ITO = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9")
LIGHT = Theme("#ffffff", "#1b1f24", "#5f6770", "#e8eaed", "#0072B2", "#C65300", "#00805E", "#A5487C", OKABE_ITO)
DARK = Theme(
    "#161a20", "#e6e9ed", "#9aa4af", "#2a3038", "#56B4E9", "#E8772E", "#2DB88F", "#DD93BA",
    ("#3D9BD8", "#E69F00", "#2DB88F", "#E8772E", "#DD93BA", "#9AD3F5"),
)  # fmt: skip


@dataclass(frozen=True)
class Picture:
    """One figure as PNG, for wide and narrow screens, light and dark."""

    light: bytes
    dark: bytes
    narrow_light: bytes
    narrow_dark: bytes

    @classmethod
    def of(cls, draw: Callable[[Theme, bool], Figure]) -> "Picture":
        """Render `draw(theme, narrow)` in its four versions."""
        return cls(*(to_png(draw(theme, narrow)) for narrow in (False, True) for theme in (LIGHT, DARK)))


def to_png(figure: Figure) -> bytes:
    """Render a figure."""
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=figure.dpi)
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

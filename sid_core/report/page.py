"""Fill the template page.html: report.html is one page that needs no network, with images as data URIs."""

from dataclasses import astuple, dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from ..config import Config
from ..evaluation.metrics.catalogue import METRICS, headline
from .columns import RUN, further, is_best, main, protocol, setting, with_interval
from .entries import Differences, Entry
from .health import COLUMNS, Health
from .markup import EXACT, image_uri, inline
from .provenance import provenance
from .samples import Grid
from .theme import RenderedFigure

HERE = Path(__file__).parent
GROUPS = {"generator": "Generators", "teacher": "Teacher", "vae": "Limits", "real": "Limits", "published": "Published"}


@dataclass(frozen=True)
class Lists:
    """Texts and tables of the page."""

    headline: str
    notes: list[str]
    warnings: list[str]
    reasons: dict[str, str]  # by name of a figure without data
    health: list[Health]
    differences: Differences


def render(
    config: Config,
    entries: list[Entry],
    scores: dict[str, dict],
    grid: Grid,
    rendered: dict[str, RenderedFigure],
    lists: Lists,
) -> str:
    """Fill the page with the figures fid_clip, training, scales, strategies and convergence, and everything else."""
    groups: dict[str, list[Entry]] = {}
    for entry in entries:
        group = GROUPS[entry.kind] + ("" if entry.comparable else f": protocol {protocol(entry)}")
        groups.setdefault(group, []).append(entry)
    numbers = [astuple(difference) for difference in lists.differences.values()]
    compared = {name for number in numbers for name in number[:2]}
    environment = Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined, loader=FileSystemLoader(HERE)
    )
    return environment.get_template("page.html").render(
        config=config,
        entries=entries,
        grid=grid,
        rendered=rendered,
        lists=lists,
        style=Markup((HERE / "page.css").read_text(encoding="utf-8")),
        script=Markup((HERE / "page.js").read_text(encoding="utf-8")),
        groups=groups,
        tips={entry.name: _tip(entry) for entry in entries},
        tables={"Results": main(), "Further metrics": [RUN, *further(entries)]},
        trade_off_words=_trade_off_words(entries),
        pixels=max(max(row.images[0].shape) for row in grid.rows) <= EXACT,
        numbers=numbers,
        runs={entry.name: entry.name for entry in entries if entry.name in compared},
        metrics={number[2]: METRICS[number[2]].heading for number in numbers},
        health_columns=COLUMNS,
        health_rows=[(one.setting, one.cells()) for one in lists.health],
        provenance=provenance(config, scores),
        is_best=is_best,
        inline=inline,
        image_uri=image_uri,
    )


def _tip(entry: Entry) -> str:
    numbers = [f"{metric.title} {with_interval(entry, metric)}" for metric in headline()]
    return "\n".join(filter(None, [entry.name, setting(entry.row), *numbers]))


def _trade_off_words(entries: list[Entry]) -> str:
    several = ", ".join(entry.name for entry in entries if len(entry.rows) > 1)
    return (
        "Down and to the right is better. Each point carries its guidance scale; point at it for its numbers, click to select "
        f"its run. Bars: 95 % intervals, {f'over seeds of training ({several}) or of the metric (all others)' if several else 'of the metric'}."
    )

"""Fill the template page.html: report.html is one page that needs no network, with images as data URIs."""

from dataclasses import astuple, dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from ..config import Config, Run
from ..evaluation.metrics.catalogue import METRICS, headline
from .columns import RUN, filled, further, is_best, main, with_interval
from .entries import Differences, Entry, grouped
from .health import COLUMNS, Health
from .markup import EXACT, grid_uri, image_uri, inline, unbroken
from .methods import Comparison
from .provenance import provenance
from .samples import Grid
from .summary import not_comparable
from .theme import RenderedFigure

HERE = Path(__file__).parent
GROUPS = {"generator": "Generators", "teacher": "Teacher", "vae": "Limits", "real": "Limits", "published": "Published"}


@dataclass(frozen=True)
class Content:
    """Texts, tables and images of the page."""

    headline: str
    notes: list[str]
    terms: dict[str, str]
    warnings: list[str]
    reasons: dict[str, str]  # by name of a figure without data
    health: list[Health]
    differences: Differences
    grid: Grid
    progress: list[tuple[Run, list[Path]]]
    methods: Comparison | None


def render(
    config: Config, entries: list[Entry], scores: dict[str, dict], rendered: dict[str, RenderedFigure], content: Content
) -> str:
    """Fill the page with the figures by name, those that there are, and everything else."""
    numbers = [astuple(difference) for difference in content.differences.values()]
    compared = {name for number in numbers for name in number[:2]}
    own, foreign = ([entry for entry in entries if entry.comparable is same] for same in (True, False))
    swept = {entry.name for entry in entries if entry.swept or entry.kind == "teacher"}
    strip = [row for row in content.grid.rows if row.name in swept]
    if len(strip) < 2:
        strip = [row for row in content.grid.rows if row.kind != "real"]
    methods = [group[0].name for group in content.methods.methods.values()] if content.methods else []
    return fill(
        "page.html",
        "tables.js",
        "page.js",
        config=config,
        entries=entries,
        content=content,
        rendered=rendered,
        strip=strip,
        of_methods=[row for row in content.grid.rows if row.name in methods],
        groups=groups_of(own),
        foreign=groups_of(foreign),
        not_comparable=not_comparable(entries),
        tips={entry.name: _tip(entry) for entry in entries},
        main=filled(main(), entries),
        further=[RUN, *further(entries)],
        main_foreign=filled(main(), foreign),
        trade_off_words=_trade_off_words(entries),
        pixels=max(max(row.images[0].shape) for row in content.grid.rows) <= EXACT,
        numbers=numbers,
        labels={entry.name: entry.label for entry in entries},
        compared={entry.name: entry.label for entry in entries if entry.name in compared},
        metrics={number[2]: METRICS[number[2]].heading for number in numbers},
        health_columns=COLUMNS,
        health_rows=[(one.setting, one.cells()) for one in content.health],
        steps=sorted({int(path.stem) for _, grids in content.progress for path in grids}),
        provenance=provenance(config, scores),
        is_best=is_best,
        inline=inline,
        image_uri=image_uri,
        unbroken=unbroken,
        grid_uri=grid_uri,
    )


def fill(name: str, *scripts: str, **values: object) -> str:
    """Fill a template of this folder with the style, the scripts and `values`; every text is escaped where it enters."""
    options = {"autoescape": True, "trim_blocks": True, "lstrip_blocks": True, "undefined": StrictUndefined}
    environment = Environment(loader=FileSystemLoader(HERE), **options)
    style, *code = (Markup((HERE / file).read_text(encoding="utf-8")) for file in ("page.css", *scripts))
    return environment.get_template(name).render(style=style, script=Markup("\n").join(code), **values)


def groups_of(entries: list[Entry]) -> dict[str, list[Entry]]:
    """Group entries by the heading of their kind."""
    return grouped(entries, lambda entry: GROUPS[entry.kind])


def _tip(entry: Entry) -> str:
    numbers = [f"{metric.title} {with_interval(entry, metric)}" for metric in headline()]
    return "\n".join([entry.label, *numbers, entry.name])


def _trade_off_words(entries: list[Entry]) -> str:
    several = ", ".join(entry.label for entry in entries if len(entry.rows) > 1)
    of = f"over seeds of training ({several}) or of the metric (all others)" if several else "of the metric"
    return (
        "FID, the distance from real images, is better further down; recall, the part of their variety that is reached, further "
        "up; and the CLIP score, agreement with the prompt, further to the right. Each point carries its guidance scale; point at "
        f"it for its numbers, click to select its run. Bars: 95 % intervals, {of}."
    )

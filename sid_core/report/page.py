"""report.html: the whole comparison on one page that needs no network.

Images are data URIs, style and script are inline, and a content security policy forbids anything else. What belongs to a run
carries its name (without its seed) as data-run; page.js selects by it, everywhere at once.
"""

import json
from dataclasses import astuple, dataclass
from html import escape
from pathlib import Path

from ..config import Config
from ..evaluation.metrics.catalogue import METRICS, headline
from .columns import RUN, Column, further, is_best, main, protocol, setting, with_interval
from .comparer import comparer
from .entries import Differences, Entry
from .health import COLUMNS, Health
from .markup import bullets, caption, figure, plain_table, scrolling, section
from .provenance import provenance
from .samples import Grid
from .theme import Picture

STYLE = Path(__file__).with_name("page.css")
SCRIPT = Path(__file__).with_name("page.js")
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
GROUPS = {
    "generator": "Generators",
    "teacher": "Teacher",
    "vae": "Limits",
    "real": "Limits",
    "published": "Published",
}
TRAINING_WORDS = "A point is a mean over the images since the last one. Dashed: limits of the alarms, which end a run that stays beyond one."
PAIRS_WORDS = (
    "Paired: over samples of the same captions and noise (of several seeds of training the first), or over seeds of training: the same "
    "of two generators, each against a row that has none. "
    "A verdict is given where the 95 % interval leaves out 0. Other pairs: pairs.csv."
)
MORE = {  # title and words of the further figures
    "scales": ("Scores over guidance scales", "Hollow: a further run of that scale, such as a longer one. Bars: the spread over seeds, or the 95 % interval of a single one."),
    "strategies": ("Strategies of guidance", "Without guidance, with it in the teacher alone (long), in training of the fake score alone (short), in both (LSG)."),
    "convergence": ("Convergence", "Measured on few samples for held-out captions: to follow a run by, not to compare with other numbers."),
}  # fmt: skip


@dataclass(frozen=True)
class Lists:
    """What is told in words and lines."""

    headline: str
    notes: list[str]
    warnings: list[str]
    reasons: dict[str, str]  # why a figure of MORE shows nothing
    health: list[Health]
    differences: Differences


def render(
    config: Config,
    entries: list[Entry],
    scores: dict[str, dict],
    grid: Grid,
    pictures: dict[str, Picture],
    lists: Lists,
) -> str:
    """The page. `pictures` by name: fid_clip, training and those of MORE."""
    tips = {entry.name: _tip(entry) for entry in entries}
    sections = {
        "results": ("Results", _tables(entries, tips) + bullets(lists.notes)),
        "trade-off": (
            "Trade-off",
            figure(pictures["fid_clip"], "FID against CLIP score", _trade_off_words(entries), tips),
        ),
        "samples": ("Images", comparer(grid)),
        "differences": ("Differences", _differences(lists.differences, entries)),
        "training": (
            "Training",
            figure(pictures["training"], "Training curves of every run.", TRAINING_WORDS, name="wide"),
        ),
        "health": ("Health", plain_table(COLUMNS, ((one.setting, one.cells()) for one in lists.health), "Health")),
        "figures": ("More figures", _more(pictures, lists)),
        "provenance": ("Provenance", provenance(config, scores)),
    }
    title = escape(config.experiment)
    links = "".join(f'<a href="#{name}">{escape(heading)}</a>\n' for name, (heading, _) in sections.items())
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title} · SiD-LSG</title>
<link rel="icon" href="data:,">
<style>
{STYLE.read_text(encoding="utf-8")}</style>
</head>
<body>
<header>
<p class="kicker">SiD-LSG, one-step generators compared</p>
<h1>{title}</h1>
<p class="finding">{escape(lists.headline)}</p>
{bullets(lists.warnings, "warnings")}<nav aria-label="Sections">
{links}</nav>
</header>
<main>
{"".join(section(name, heading, body) for name, (heading, body) in sections.items())}</main>
<div id="selection" role="status" hidden><p></p><button type="button" aria-label="Clear the selection">✕</button></div>
<div id="tip" role="tooltip" hidden></div>
<script>
{SCRIPT.read_text(encoding="utf-8")}</script>
</body>
</html>
"""


# --- results ---------------------------------------------------------------------------------------------------------


def _tip(entry: Entry) -> str:
    """What is said of a setting where it is pointed at."""
    numbers = (f"{metric.title} {with_interval(entry, metric)}" for metric in headline())
    lines = [entry.name, setting(entry.row), *numbers]
    return "\n".join(filter(None, lines))


def _tables(entries: list[Entry], tips: dict[str, str]) -> str:
    """The headline table; the other metrics below."""
    more = [RUN, *further(entries)]
    rest = (
        f"<details>\n<summary>Further metrics</summary>\n{_table(entries, more, tips, 'Further metrics')}</details>\n"
    )
    return _table(entries, main(), tips, "Results") + (rest if len(more) > 1 else "")


def _table(entries: list[Entry], columns: list[Column], tips: dict[str, str], name: str) -> str:
    """A body for each kind of row; page.js sorts within each."""
    head = "".join(f'<th scope="col"><button type="button">{escape(column.title)}</button></th>' for column in columns)
    bodies: dict[str, list[str]] = {}
    for entry in entries:
        cells = "".join(_cell(entries, entry, column) for column in columns)
        group = GROUPS[entry.kind] + ("" if entry.comparable else f": protocol {protocol(entry)}")
        row = f'<tr data-run="{escape(entry.name)}" data-tip="{escape(tips[entry.name])}">{cells}</tr>\n'
        bodies.setdefault(group, []).append(row)
    body = "".join(
        f'<tbody>\n<tr class="group"><th colspan="{len(columns)}" scope="rowgroup"><span>{escape(group)}</span></th></tr>\n'
        f"{''.join(rows)}</tbody>\n"
        for group, rows in bodies.items()
    )
    return scrolling(f'<table class="results">\n<thead><tr>{head}</tr></thead>\n{body}</table>', name)


def _cell(entries: list[Entry], entry: Entry, column: Column) -> str:
    text, value = escape(column.text(entry)), column.value(entry)
    if is_best(entries, entry, column.key):
        text = f"<strong>{text}</strong>"
    sort = "" if value is None else f' data-sort="{escape(str(value))}"'
    if column.title == "Run":
        name, text = escape(entry.name), text.removeprefix("published-")  # as the group says
        return (
            f'<th scope="row"{sort}><button type="button" data-run="{name}" aria-pressed="false">{text}</button></th>'
        )
    return f"<td{sort}>{text}</td>"


# --- figures, differences ----------------------------------------------------------------------------------------------


def _trade_off_words(entries: list[Entry]) -> str:
    several = [entry.name for entry in entries if len(entry.rows) > 1]
    bars = (
        f"over seeds of training ({', '.join(several)}) or of the metric (all others)" if several else "of the metric"
    )
    return (
        "Down and to the right is better. Each point carries its guidance scale; point at it for its numbers, click to select "
        f"its run. Bars: 95 % intervals, {bars}."
    )


def _differences(differences: Differences, entries: list[Entry]) -> str:
    """Controls and an empty table that page.js fills."""
    numbers = [astuple(difference) for difference in differences.values()]
    if not numbers:
        return caption("There is no pair of runs with a measured difference (pairs.csv).")
    runs = [entry.name for entry in entries if any(entry.name in number[:2] for number in numbers)]
    metrics = {number[2]: METRICS[number[2]].heading for number in numbers}

    def choice(name: str, label: str, values: dict[str, str]) -> str:
        options = "".join(f'<option value="{escape(value)}">{escape(text)}</option>' for value, text in values.items())
        return f'<label>{label} <select id="{name}">{options}</select></label>\n'

    heads = (
        "With",
        "Difference",
        "95 % interval",
        '<span class="unseen">Drawn</span>',
        '<span id="pair-verdict"></span>',
        "Over",
    )
    head = "".join(f'<th scope="col">{title}</th>' for title in heads)
    table = f'<table class="plain" id="difference">\n<thead><tr>{head}</tr></thead>\n<tbody></tbody></table>'
    data = json.dumps(numbers, ensure_ascii=False).replace("<", "\\u003c")
    return (
        '<div class="controls">\n'
        + choice("pair-run", "Compare", {run: run for run in runs})
        + choice("pair-metric", "with the others in", metrics)
        + f"</div>\n{scrolling(table, 'Differences')}"
        + caption(PAIRS_WORDS)
        + f'<script type="application/json" id="pairs">{data}</script>\n'
    )


def _more(pictures: dict[str, Picture], lists: Lists) -> str:
    body = ""
    for name, (title, words) in MORE.items():
        if name not in lists.reasons:
            body += f"<h3>{escape(title)}</h3>\n{figure(pictures[name], title, words)}"
    return body + bullets(f"{MORE[name][0]}: {reason}." for name, reason in lists.reasons.items())

"""report.html: the whole comparison on one page that needs no network.

Images are data URIs, style and script are inline, and a content security policy forbids anything else. Figures come in a light
and a dark version. Every text is escaped where it enters the page.
"""

import base64
import io
from html import escape
from pathlib import Path

import numpy as np
from PIL import Image

from ..config import Config, dump
from .samples import LARGEST, Grid, fit
from .summary import TABLE, Column, Entry, finding, is_best, notes
from .table import flat
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


def render(
    config: Config,
    entries: list[Entry],
    scores: dict[str, dict],
    grid: Grid,
    warnings: list[str],
    pictures: dict[str, Picture],
) -> str:
    """The page. `pictures` by name: fid_clip, training."""
    sections = [
        _section("results", "Results", _table(entries) + _list(notes(entries))),
        _section("trade-off", "Trade-off", _figure(pictures["fid_clip"], *_trade_off_words(entries), "plain")),
        _section("samples", "Samples", _samples(grid)),
        _section("training", "Training", _figure(pictures["training"], *TRAINING_WORDS, "wide")),
        _section("settings", "Settings and provenance", _provenance(config, scores)),
    ]
    title = escape(config.experiment)
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
<p class="finding">{escape(finding(entries))}</p>
{_list(warnings, "warnings")}</header>
<main>
{"".join(sections)}</main>
<script>
{SCRIPT.read_text(encoding="utf-8")}</script>
</body>
</html>
"""


def _section(name: str, title: str, body: str) -> str:
    return f'<section id="{name}">\n<h2>{escape(title)}</h2>\n{body}</section>\n'


def _list(lines: list[str], name: str = "notes") -> str:
    items = "".join(f"<li>{escape(line)}</li>\n" for line in lines)
    return f'<ul class="{name}">\n{items}</ul>\n' if lines else ""


# --- results ---------------------------------------------------------------------------------------------------------


def _table(entries: list[Entry]) -> str:
    """The headline table, a body for each kind; page.js sorts within each."""
    head = "".join(f'<th scope="col"><button type="button">{escape(column.title)}</button></th>' for column in TABLE)
    bodies: dict[str, list[str]] = {}
    for entry in entries:
        cells = "".join(_cell(entries, entry, column) for column in TABLE)
        group = GROUPS[entry.kind] + ("" if entry.comparable else ", not comparable")
        bodies.setdefault(group, []).append(f"<tr>{cells}</tr>\n")
    body = "".join(
        f'<tbody>\n<tr class="group"><th colspan="{len(TABLE)}" scope="rowgroup"><span>{escape(group)}</span></th></tr>\n'
        f"{''.join(rows)}</tbody>\n"
        for group, rows in bodies.items()
    )
    return _scrolling(f'<table class="results">\n<thead><tr>{head}</tr></thead>\n{body}</table>', "Results")


def _cell(entries: list[Entry], entry: Entry, column: Column) -> str:
    text, value = escape(column.text(entry)), column.value(entry)
    if is_best(entries, entry, column.key):
        text = f"<strong>{text}</strong>"
    sort = "" if value is None else f' data-sort="{escape(str(value))}"'
    if column.title == "Run":
        return f'<th scope="row"{sort}>{text}</th>'
    return f'<td class="{"word" if isinstance(value, str) else "number"}"{sort}>{text}</td>'


def _scrolling(body: str, name: str) -> str:
    """A box that scrolls sideways on a narrow screen, also from the keyboard."""
    return f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(name)}">\n{body}\n</div>\n'


# --- pictures --------------------------------------------------------------------------------------------------------

TRAINING_WORDS = (
    "Training curves of every run.",
    "A point is a mean over the images since the last one. Dashed: the limits of the alarms, which end a run that stays beyond one.",
)


def _trade_off_words(entries: list[Entry]) -> tuple[str, str]:
    seeds = max(len(entry.rows) for entry in entries)
    bars = f"one standard deviation over {seeds} seeds" if seeds > 1 else "one standard error of the metric"
    return (
        "FID against CLIP score.",
        f"Each point carries its guidance scale; down and to the right is better. Error bars: {bars}.",
    )


def _figure(picture: Picture, alt: str, caption: str, name: str) -> str:
    narrow, dark = "(max-width: 600px)", "(prefers-color-scheme: dark)"
    sources = {
        f"{narrow} and {dark}": picture.narrow_dark,
        narrow: picture.narrow_light,
        dark: picture.dark,
    }
    body = "".join(f'<source media="{media}" srcset="{_data_uri(png)}">\n' for media, png in sources.items())
    body += f'<img src="{_data_uri(picture.light)}" alt="{escape(alt)}">'
    return f'<figure class="{name}">\n<picture>\n{body}\n</picture>\n<figcaption>{escape(caption)}</figcaption>\n</figure>\n'


def _data_uri(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


def _samples(grid: Grid) -> str:
    """The same captions and noise down the rows; small images are stored small and enlarged by the browser, pixel by pixel."""
    head = "".join(f'<th scope="col">{escape(caption)}</th>' for caption in grid.captions)
    rows = []
    for row in grid.rows:
        cells = "".join(
            f'<td><img src="{_image(image)}" alt="{escape(f"{caption} ({row.name})")}"></td>'
            for image, caption in zip(row.images, grid.captions, strict=True)
        )
        title = escape(row.title).replace("\n", "<br>")
        rows.append(
            f'<tr class="{row.kind}"><th scope="row">{title}<small>{escape(row.subtitle)}</small></th>{cells}</tr>\n'
        )
    table = (
        f'<table class="samples">\n<thead><tr><td></td>{head}</tr></thead>\n<tbody>\n{"".join(rows)}</tbody></table>'
    )
    words = "Not chosen: the first samples with different captions. A column has one caption and, but for real images, one noise."
    return _scrolling(table, "Samples") + f'<p class="caption">{escape(words)}</p>\n'


def _image(image: np.ndarray) -> str:
    png = io.BytesIO()
    Image.fromarray(image if max(image.shape) <= LARGEST else fit(image)).save(png, "png", optimize=True)
    return _data_uri(png.getvalue())


# --- provenance ------------------------------------------------------------------------------------------------------


def _provenance(config: Config, scores: dict[str, dict]) -> str:
    first = next(iter(scores.values()))
    generators = {name: score["generator_sha256"] for name, score in scores.items() if score["generator_sha256"]}
    return (
        "<h3>Protocol</h3>\n"
        + _pairs({"hash": first["protocol_hash"]} | flat(first["protocol"]))
        + "<h3>Generators, sha256 of their weights</h3>\n"
        + _pairs(generators)
        + "<h3>Versions</h3>\n"
        + _pairs(_versions(scores))
        + f"<details>\n<summary>Configuration</summary>\n<pre>{escape(dump(config))}</pre>\n</details>\n"
    )


def _versions(scores: dict[str, dict]) -> dict[str, str]:
    """The versions of all scores put together; where they differ, every one."""
    found: dict[str, dict[str, None]] = {}
    for score in scores.values():
        for name, version in flat(score["versions"]).items():
            found.setdefault(name, {})[version] = None
    return {name: "; ".join(versions) for name, versions in found.items()}


def _pairs(values: dict[str, str]) -> str:
    lines = "".join(f"<div><dt>{escape(key)}</dt><dd>{escape(value)}</dd></div>\n" for key, value in values.items())
    return f"<dl>\n{lines}</dl>\n"

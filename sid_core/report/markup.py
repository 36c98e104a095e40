"""Pieces of the page: every text is escaped where it enters, images are data URIs, figures inline SVG in the page's colours."""

import base64
import io
import re
from collections.abc import Iterable, Mapping
from html import escape

import numpy as np
from PIL import Image

from .samples import LARGEST, fit
from .theme import LIGHT, Picture

EXACT = 64  # pixels; smaller samples are kept to the bit, larger ones are compressed


def section(name: str, title: str, body: str) -> str:
    return f'<section id="{name}" aria-labelledby="{name}-title">\n<h2 id="{name}-title">{escape(title)}</h2>\n{body}</section>\n'


def bullets(lines: Iterable[str], name: str = "notes") -> str:
    """A list; '' of nothing."""
    items = "".join(f"<li>{escape(line)}</li>\n" for line in lines)
    return f'<ul class="{name}">\n{items}</ul>\n' if items else ""


def caption(text: str) -> str:
    return f'<p class="caption">{escape(text)}</p>\n'


def scrolling(body: str, name: str) -> str:
    """A box that scrolls sideways on a narrow screen, also from the keyboard."""
    return f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(name)}">\n{body}\n</div>\n'


def pairs(values: Mapping[str, object]) -> str:
    """Names and values, a line each."""
    lines = "".join(
        f"<div><dt>{escape(key)}</dt><dd>{escape(str(value))}</dd></div>\n" for key, value in values.items()
    )
    return f"<dl>\n{lines}</dl>\n"


def plain_table(head: Iterable[str], rows: Iterable[tuple[str | None, Iterable[str]]], name: str) -> str:
    """A table of text. `rows`: the run (without its seed) that a row belongs to, if to one, and its cells, the first of which names it."""
    titles = "".join(f'<th scope="col">{escape(title)}</th>' for title in head)
    body = ""
    for run, (first, *cells) in rows:
        rest = "".join(f"<td>{escape(cell)}</td>" for cell in cells)
        belongs = f' data-run="{escape(run)}"' if run else ""
        body += f'<tr{belongs}><th scope="row">{escape(first)}</th>{rest}</tr>\n'
    return scrolling(f'<table class="plain">\n<thead><tr>{titles}</tr></thead>\n<tbody>\n{body}</tbody></table>', name)


def data_uri(kind: str, data: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def image_uri(image: np.ndarray) -> str:
    """A sample, uint8 (H, W, 3): small ones as they are, large ones shrunk and compressed."""
    data = io.BytesIO()
    if max(image.shape) <= EXACT:
        Image.fromarray(image).save(data, "png", optimize=True)
        return data_uri("png", data.getvalue())
    Image.fromarray(image if max(image.shape) <= LARGEST else fit(image)).save(data, "webp", quality=85)
    return data_uri("webp", data.getvalue())


# --- figures -----------------------------------------------------------------------------------------------------------


def figure(picture: Picture, alt: str, words: str, tips: Mapping[str, str] | None = None, name: str = "plain") -> str:
    """A figure. `tips`: what each of its points says, by run; without them it is one image."""
    drawing = scrolling(inline(picture.svg, alt, tips), alt)
    return f'<figure class="{name}">\n{drawing}<figcaption>{escape(words)}</figcaption>\n</figure>\n'


def inline(svg: str, alt: str, tips: Mapping[str, str] | None) -> str:
    """An SVG file of matplotlib's as part of the page: in its colours and font, without what only a file needs."""
    viewbox = re.search(r'viewBox="[^"]*"', svg)[0]
    body = svg[svg.index('<g id="figure_1">') : svg.rindex("</svg>")]
    used = set(re.findall(r'(?:href="#|url\(#)([^")]+)', body))
    colours = LIGHT.names()

    def identity(match: re.Match) -> str:
        kind, _, run = match[1].partition(":")
        if kind == "point" and tips:
            return f' class="point" data-run="{run}" role="button" tabindex="0" {_says(tips.get(run, run))}'
        if kind in ("run", "point"):
            return f' data-run="{run}"'
        return match[0] if match[1] in used else ""

    body = re.sub(r' id="([^"]*)"', identity, body)
    # an unseen disc has no look of its own here, so that the page can give it one
    body = re.sub(r'(class="point"[^>]*>\s*<defs>\s*<path [^>]*?) style="[^"]*"', r"\1", body)
    body = re.sub(r"#[0-9a-f]{6}\b", lambda match: f"var(--figure-{colours.get(match[0], 'ink')})", body)
    body = re.sub(r"font-family: [^;\"]+; ", "", body).replace("xlink:href", "href")
    body = re.sub(r' transform="rotate\(-?0 [^"]*"', "", body)
    body = re.sub(r"\d+\.\d{5,}", lambda match: f"{float(match[0]):.2f}", body)  # texts have four decimals at most
    body = re.sub(r"\s*\n\s*", " ", body)
    role = "group" if tips else "img"
    return f'<svg {viewbox} role="{role}" aria-label="{escape(alt)}">{body}</svg>\n'


def _says(tip: str) -> str:
    text = escape(tip).replace("\n", "&#10;")
    return f'data-tip="{text}" aria-label="{text}" aria-pressed="false"'

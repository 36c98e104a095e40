"""Images as data URIs, and figures as inline SVG in the page's colours."""

import base64
import io
import re
from collections.abc import Mapping
from html import escape

import numpy as np
from markupsafe import Markup
from PIL import Image

from .samples import LARGEST, fit
from .theme import LIGHT

EXACT = 64  # pixels; smaller samples are kept to the bit, larger ones are compressed


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


def inline(svg: str, alt: str, tips: Mapping[str, str] | None) -> Markup:
    """Make an SVG file of matplotlib's part of the page: in its colours and font, without what only a file needs.

    `tips`: what each of its points says, by run; without them it is one image.
    """
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
    return Markup(f'<svg {viewbox} role="{role}" aria-label="{escape(alt)}">{body}</svg>')


def _says(tip: str) -> str:
    text = escape(tip).replace("\n", "&#10;")
    return f'data-tip="{text}" aria-label="{text}" aria-pressed="false"'

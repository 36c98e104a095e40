"""Convert images to data URIs, and figures to inline SVG in the page's colours."""

import base64
import io
import re
from collections.abc import Mapping
from html import escape
from pathlib import Path

import numpy as np
from markupsafe import Markup
from PIL import Image

from .samples import LARGEST, fit
from .theme import LIGHT

GRID = 512  # pixels
WHOLE = re.compile(r"\S*-\S+|κ = \S+|\S+ steps|CFG \S+|\S+ ± \S+|\[.*?\]")
EXACT = 64  # pixels; smaller samples are stored losslessly, larger ones compressed


def image_uri(image: np.ndarray, largest: int = LARGEST) -> str:
    """Encode a sample, uint8 (H, W, 3): small ones losslessly, large ones compressed, and shrunk to `largest` pixels."""
    data, side = io.BytesIO(), max(image.shape)
    kind, options = ("png", {"optimize": True}) if side <= EXACT else ("webp", {"quality": 85})
    Image.fromarray(image if side <= largest else fit(image, largest)).save(data, kind, **options)
    return f"data:image/{kind};base64,{base64.b64encode(data.getvalue()).decode()}"


def grid_uri(path: Path) -> str:
    """Encode a sample grid, compressed and at most GRID pixels wide."""
    data = io.BytesIO()
    with Image.open(path) as image:
        image.thumbnail((GRID, GRID))
        image.convert("RGB").save(data, "webp", quality=80)
    return f"data:image/webp;base64,{base64.b64encode(data.getvalue()).decode()}"


def unbroken(text: str) -> Markup:
    """Keep 'SiD-LSG', 'κ = 1.5', '8 steps', '2.07 ± 0.17' and '[0.54, 1.40]' each on one line."""
    return Markup(WHOLE.sub(r'<span class="whole">\g<0></span>', escape(text)))


def inline(svg: str, alt: str, tips: Mapping[str, str] | None) -> Markup:
    """Convert matplotlib's SVG to markup in the page's colours and font; its points are buttons that show `tips` by run."""
    viewbox = re.search(r'viewBox="[^"]*"', svg)[0]
    body = svg[svg.index('<g id="figure_1">') : svg.rindex("</svg>")]
    used = set(re.findall(r'(?:href="#|url\(#)([^")]+)', body))
    colours = LIGHT.names()

    def identity(match: re.Match) -> str:
        kind, _, run = match[1].partition(":")
        if kind == "point" and tips:
            tip = escape(tips.get(run, run)).replace("\n", "&#10;")
            button = f'role="button" tabindex="0" data-tip="{tip}" aria-label="{tip}" aria-pressed="false"'
            return f' class="point" data-run="{run}" {button}'
        if kind in ("run", "point"):
            return f' data-run="{run}"'
        return match[0] if match[1] in used else ""

    body = re.sub(r' id="([^"]*)"', identity, body)
    # the page styles the discs, which are invisible in a file
    body = re.sub(r'(class="point"[^>]*>\s*<defs>\s*<path [^>]*?) style="[^"]*"', r"\1", body)
    body = re.sub(r"#[0-9a-f]{6}\b", lambda match: f"var(--figure-{colours.get(match[0], 'ink')})", body)
    body = re.sub(r"font-family: [^;\"]+; ", "", body).replace("xlink:href", "href")
    body = re.sub(r' transform="rotate\(-?0 [^"]*"', "", body)
    body = re.sub(r"\d+\.\d{5,}", lambda match: f"{float(match[0]):.2f}", body)  # texts have at most four decimals
    body = re.sub(r"\s*\n\s*", " ", body)
    role = "group" if tips else "img"
    return Markup(f'<svg {viewbox} role="{role}" aria-label="{escape(alt)}">{body}</svg>')

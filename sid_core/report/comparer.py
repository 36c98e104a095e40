"""The image comparer: prompts to choose from, the same noise across the guidance scales, the teacher as reference."""

from html import escape

from .markup import EXACT, caption, image_uri, scrolling
from .samples import Grid

SHOWN = 6  # prompts, until others are chosen
WORDS = (
    "Not chosen by quality: the first samples with different captions. Along a row caption and, but for real images, noise are the "
    "same. Click an image to select its run."
)


def comparer(grid: Grid) -> str:
    """Controls, and a table with a column for each row of `grid` and a body for each caption; page.js hides and shows them."""
    choices = "".join(
        f'<label><input type="checkbox" name="prompt" value="{number}"{" checked" if number < SHOWN else ""}>{escape(text)}</label>\n'
        for number, text in enumerate(grid.captions)
    )
    controls = f"""<div class="controls">
<button type="button" id="other-prompts">Other prompts</button>
<label>Size <input type="range" id="tile" min="48" max="256" step="8" value="120"></label>
<details>
<summary>Choose prompts</summary>
<fieldset>
<legend class="unseen">Prompts</legend>
{choices}</fieldset>
</details>
</div>
"""
    head = "".join(
        f'<th scope="col" data-run="{escape(row.name)}"><button type="button" data-run="{escape(row.name)}" aria-pressed="false">'
        f"{escape(row.title).replace(chr(10), '<br>')}<small>{escape(row.subtitle)}</small></button></th>"
        for row in grid.rows
    )
    bodies = "".join(_body(grid, number) for number in range(len(grid.captions)))
    small = " pixels" if max(max(row.images[0].shape) for row in grid.rows) <= EXACT else ""
    table = f'<table class="samples{small}" style="--columns: {len(grid.rows)}">\n<thead><tr>{head}</tr></thead>\n{bodies}</table>'
    return controls + scrolling(table, "Samples") + caption(WORDS)


def _body(grid: Grid, number: int) -> str:
    text = escape(grid.captions[number])
    cells = "".join(
        f'<td data-run="{escape(row.name)}"><img src="{image_uri(row.images[number])}" alt="{text} ({escape(row.name)})"></td>'
        for row in grid.rows
    )
    hidden = "" if number < SHOWN else " hidden"
    return (
        f'<tbody data-prompt="{number}"{hidden}>\n<tr><th colspan="{len(grid.rows)}" scope="rowgroup"><span>{text}</span></th></tr>\n'
        f"<tr>{cells}</tr>\n</tbody>\n"
    )

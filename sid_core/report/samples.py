"""Align samples of the same captions and noise: the teacher, every guidance scale, real images."""

import hashlib
import math
import tarfile
import textwrap
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from PIL import Image, UnidentifiedImageError

from ..config import Config, Run, runs, shards
from ..errors import UserError
from ..pipeline.paths import Results, Row, State
from ..storage.files import read_json, read_lines, sidecar
from .entries import Entry, best
from .theme import DPI, LIGHT, new_figure

COLUMNS = 10  # of the sheet
PROMPTS = 24  # to choose from on the page
TILE = 192  # approximate pixels of a sample in the sheet
LARGEST = 256  # pixels; larger samples are shrunk
POINTS = 12  # sample grids of a training
GAP, GAP_BETWEEN_KINDS, MARGIN, NAMES_WIDTH = 8, 26, 24, 300  # pixels


@dataclass(frozen=True)
class SampleRow:
    """One row of the sheet."""

    kind: str
    name: str  # of the run or baseline
    title: str
    subtitle: str
    images: list[np.ndarray]  # uint8 (H, W, 3)


@dataclass(frozen=True)
class Grid:
    """Rows of samples, with their shared indices and captions."""

    indices: list[int]
    captions: list[str]
    rows: list[SampleRow]


def read_grid(config: Config, folder: Path, entries: list[Entry]) -> Grid:
    """Read samples of different captions: the best teacher baseline's, every generator's (first seed), real images."""
    shard = shards(config)[0]
    count = min(config.generate.samples, config.generate.samples_per_shard)
    captions = read_lines(Results(folder).captions, "caption")[:count]
    first_with = {caption: index for index, caption in reversed([*enumerate(captions)])}
    indices = sorted(first_with.values())[:PROMPTS]

    def row(entry: Entry) -> SampleRow:
        files = Results(folder).row("runs" if entry.kind == "generator" else "baselines", entry.row.run)
        images = read_images(files.samples(shard), indices, captions)
        return SampleRow(entry.kind, entry.name, entry.label, f"FID {entry.estimate('fid')[0]:.1f}", images)

    teacher = best(entries, "teacher", "fid")
    shown = [teacher] if teacher else []
    shown += [entry for kind in ("generator", "real") for entry in entries if entry.kind == kind]
    return Grid(indices, [captions[index] for index in indices], [row(entry) for entry in shown])


def read_progress(config: Config, trainings: dict[str, Row | State]) -> list[tuple[Run, list[Path]]]:
    """List each setting's first seed with its sample grids, IMAGES_SEEN.png: at most POINTS, evenly spread, with the last."""
    first = [run for run in runs(config) if run.seed == config.seeds[0] and run.name in trainings]
    grids = [(run, sorted(trainings[run.name].grids.glob("*.png"))) for run in first]
    return [(run, files[:: -math.ceil(len(files) / POINTS)][::-1]) for run, files in grids if files]


def read_images(shard: Path, indices: list[int], captions: list[str]) -> list[np.ndarray]:
    """Read samples of a shard, uint8 (H, W, 3); raise UserError where captions or pixels differ from its record."""
    record = read_json(sidecar(shard)).get("record", {})
    recorded = {sample["index"]: sample["sha256"] for sample in record.get("samples", [])}
    if record.get("captions_sha256") != hashlib.sha256("\n".join(captions).encode()).hexdigest():
        raise UserError(f"{shard}: other captions than in prompts/evaluation.txt. Fix: delete it and rerun.")
    images = {}
    try:
        with tarfile.open(shard) as archive:
            for index, member in enumerate(archive):  # a tar has no index: read up to the last sample needed
                if index in indices:
                    with archive.extractfile(member) as file, Image.open(file) as image:
                        images[index] = np.asarray(image.convert("RGB"))
                    if hashlib.sha256(images[index].tobytes()).hexdigest() != recorded.get(index):
                        raise UserError(f"{shard}: {member.name} differs from its record. Fix: delete it and rerun.")
                if len(images) == len(indices):
                    break
    except FileNotFoundError:
        raise UserError(f"{shard}: no such file. Fix: rerun generate.") from None
    except (tarfile.TarError, UnidentifiedImageError, OSError, EOFError) as error:
        raise UserError(f"{shard}: damaged ({error}). Fix: delete it and rerun.") from None
    if len(images) < len(indices):
        raise UserError(f"{shard}: damaged (ends before sample {max(indices):08d}). Fix: delete it and rerun.")
    return [images[index] for index in indices]


def fit(image: np.ndarray, largest: int = LARGEST) -> np.ndarray:
    """Repeat the pixels of a small image up to about TILE, or shrink a large one to `largest` pixels."""
    side = max(image.shape[:2])
    factor = max(round(TILE / side), 1 if side > TILE // 3 else 3)
    image = image.repeat(factor, axis=0).repeat(factor, axis=1)
    if max(image.shape[:2]) > largest:
        scale = largest / max(image.shape[:2])
        size = (round(image.shape[1] * scale), round(image.shape[0] * scale))
        image = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.LANCZOS))
    return image


def draw(grid: Grid) -> Figure:
    """Plot the sheet of the first COLUMNS samples, pixel by pixel: captions above the columns, names left of the rows."""
    tiles = [[fit(image) for image in row.images[:COLUMNS]] for row in grid.rows]
    height, width = np.max([tile.shape[:2] for line in tiles for tile in line], axis=0)
    letters = max(int(width / 10.5), 8)  # of a column, each of 10.5 pixels
    shortened = (textwrap.shorten(caption, 90, placeholder="…") for caption in grid.captions[:COLUMNS])
    captions = [textwrap.fill(caption, letters) for caption in shortened]
    y = MARGIN + 26 * max(caption.count("\n") + 1 for caption in captions)
    starts = []
    for row, before in zip(grid.rows, [None, *grid.rows[:-1]], strict=True):
        y += GAP_BETWEEN_KINDS if before is not None and before.kind != row.kind else GAP
        starts.append(y)
        y += height
    columns = [NAMES_WIDTH + column * (width + GAP) for column in range(len(captions))]
    sheet_width, sheet_height = columns[-1] + width + MARGIN, y + MARGIN

    with matplotlib.rc_context(LIGHT.rc()):
        figure = new_figure(sheet_width / DPI, sheet_height / DPI, layout=None)

        def text(x: float, y: float, words: str, **style: object) -> None:
            figure.text(x / sheet_width, 1 - y / sheet_height, words, **style)

        for x, caption in zip(columns, captions, strict=True):
            text(x, starts[0] - 12, caption, fontsize=6.5, va="bottom", color=LIGHT.faint)
        for row, line, start in zip(grid.rows, tiles, starts, strict=True):
            x, middle = NAMES_WIDTH - 18, start + height / 2
            title = textwrap.fill(row.title, 18, break_on_hyphens=False)
            text(x, middle - 4, title, fontsize=8, ha="right", va="bottom", fontweight="bold", linespacing=1.25)
            text(x, middle + 8, row.subtitle, fontsize=7.5, ha="right", va="top", color=LIGHT.faint)
            for x, tile in zip(columns, line, strict=True):
                figure.figimage(tile, x, sheet_height - start - tile.shape[0])
    return figure

"""Read pairs of a real image and its caption: scenes, a folder of images, webdataset archives or parquet files.

Every source is streamed; images are cropped and resized to the teacher's size in threads.
"""

import io
import tarfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from ..errors import UserError, one_line
from ..storage.files import LONGEST_LINE
from .images import shrink, to_rgb
from .pool import in_order
from .reference_images import DAMAGED, SUFFIXES, is_image
from .shapes import scenes

if TYPE_CHECKING:
    from ..config import Real

SCENES = 10_000  # pairs of `embedded`, unless the settings state a number
ROWS = 64  # of a parquet file at once, with their images
AHEAD = 32  # decoded images that wait for the VAE, for each thread


@dataclass(frozen=True)
class Pairs:
    """A source of pairs: their number, and an iterator of (name, image or its bytes, caption) in order of names."""

    count: int
    read: Callable[[], Iterator[tuple[str, np.ndarray | bytes, str]]]


def real_pairs(real: "Real", side: int, workers: int = 1) -> tuple[int, Iterator[tuple[np.ndarray, str]]]:
    """Return the number of pairs, and an iterator of images (side, side, 3) uint8 and captions.

    Raises:
        UserError: the source is missing, has another format or too few pairs; while iterating, an image is damaged or
            too small, or has no caption. The message names the file.
    """
    found = _source(real)
    count = real.pairs or (SCENES if real.source == "embedded" else found.count)
    if found.count < count:
        raise UserError(f"distill.real.pairs={count}: {real.source} holds {found.count:,}. Fix: lower the number")
    first = (pair for pair, _ in zip(found.read(), range(count), strict=False))
    return count, in_order(partial(_prepare, side), first, workers, AHEAD * workers)


def _prepare(side: int, pair: tuple[str, np.ndarray | bytes, str]) -> tuple[np.ndarray, str]:
    """Decode, crop and resize an image, and check its caption."""
    name, image, text = pair
    where, caption = f"distill.real: {name}", " ".join(text.split())
    if not 0 < len(caption) <= LONGEST_LINE:
        raise UserError(f"{where}: expected a caption, got {len(caption):,} characters. Fix: give one, or remove it")
    image = _decode(image, where) if isinstance(image, bytes) else image
    height, width = image.shape[:2]
    if min(height, width) < side:
        raise UserError(
            f"{where}: {width} x {height} pixels, expected at least the teacher's {side} x {side}. "
            "Fix: remove the image, or give a larger one: enlarged, it would teach its blur"
        )
    return shrink(image, side), caption


def _decode(data: bytes, where: str) -> np.ndarray:
    try:
        with warnings.catch_warnings(), Image.open(io.BytesIO(data)) as picture:
            warnings.simplefilter("ignore")  # of odd EXIF data; damaged pixels raise
            return to_rgb(picture, where)
    except DAMAGED as error:
        raise UserError(f"{where}: damaged or no image ({error}). Fix: get it again, or remove it") from None


# --- sources -----------------------------------------------------------------------------------------------------------


def _source(real: "Real") -> Pairs:
    if real.source == "embedded":
        return Pairs(scenes.BLOCK * 1_000_000, _scenes)
    path = Path(real.source).expanduser()
    if not path.exists():
        raise UserError(f"distill.real.source={real.source}: no such file or folder. Fix: give its path, or `embedded`")
    files = [path] if path.is_file() else sorted(path.glob("*.tar")) or sorted(path.glob("*.parquet"))
    if real.captions:
        found = _table(real, path)
    elif not files:
        found = _by_stem(*_folder(path), path)
    else:
        kinds = {".tar": lambda file: _by_stem(*_archive(file), file), ".parquet": partial(_parquet, real)}
        if files[0].suffix not in kinds:
            expected = "expected a folder, a .tar or a .parquet. Fix: unpack it"
            raise UserError(f"distill.real.source={real.source}: {expected}")
        parts = [kinds[file.suffix](file) for file in files]
        found = Pairs(sum(part.count for part in parts), lambda: (pair for part in parts for pair in part.read()))
    if not found.count:
        raise UserError(
            f"distill.real.source={real.source}: expected images ({', '.join(sorted(SUFFIXES))}), got none. "
            "Fix: give another folder or file"
        )
    return found


def _scenes() -> Iterator[tuple[str, np.ndarray, str]]:
    """Draw scenes of a split of their own: no score and no proxy metric has one of them."""
    start = 0
    while True:
        for image, caption in zip(*scenes.draw("real-images", scenes.BLOCK, start), strict=True):
            yield "embedded scene", image, caption
        start += scenes.BLOCK


def _folder(path: Path) -> tuple[list[str], Callable[[str], bytes]]:
    names = [str(file.relative_to(path)) for file in path.rglob("*") if file.is_file()]
    return names, lambda name: (path / name).read_bytes()


def _archive(path: Path) -> tuple[list[str], Callable[[str], bytes]]:
    """List the files of a webdataset archive, and return a function that reads one."""
    try:
        archive = tarfile.open(path, "r:")  # noqa: SIM115  open as long as the source is read
        members = {member.name: member for member in archive.getmembers() if member.isfile()}
    except (tarfile.TarError, EOFError, OSError) as error:
        raise UserError(f"distill.real: {path}: truncated or no tar ({error}). Fix: get it again") from None
    return list(members), lambda name: archive.extractfile(members[name]).read()


def _by_stem(names: list[str], read: Callable[[str], bytes], place: Path) -> Pairs:
    """Join images and captions, each in the .txt of the same name."""
    images, known = sorted(name for name in names if is_image(PurePosixPath(name))), set(names)
    beside = {name: str(PurePosixPath(name).with_suffix(".txt")) for name in images}
    if lacking := [name for name in images if beside[name] not in known]:
        raise UserError(
            f"distill.real: {place}: {lacking[0]}: expected its caption in {beside[lacking[0]]}, got none"
            f"{f', as for {len(lacking) - 1:,} more' if len(lacking) > 1 else ''}. Fix: add it, or set distill.real.captions "
            "to a table"
        )

    def pairs() -> Iterator[tuple[str, bytes, str]]:
        for name in images:
            yield f"{place}: {name}", read(name), _text(read(beside[name]), f"{place}: {beside[name]}")

    return Pairs(len(images), pairs)


def _text(data: bytes, where: str) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"distill.real: {where}: not UTF-8 ({error.reason}). Fix: convert it, as with iconv") from None


def _table(real: "Real", folder: Path) -> Pairs:
    """Join the images of a folder and captions by the rows of a table."""
    import pandas

    path = Path(real.captions).expanduser()
    if not path.is_file():
        raise UserError(f"distill.real.captions={real.captions}: no such file. Fix: give its path, or null")
    text = {"dtype": str, "keep_default_na": False}
    readers = {
        ".csv": lambda: pandas.read_csv(path, **text),
        ".tsv": lambda: pandas.read_csv(path, sep="\t", **text),
        ".jsonl": lambda: pandas.read_json(path, lines=True, dtype=False),
        ".json": lambda: pandas.read_json(path, dtype=False),
        ".parquet": lambda: pandas.read_parquet(path),
    }
    try:
        table = readers[path.suffix.lower()]()
    except (ValueError, OSError) as error:  # pandas' and pyarrow's errors are ValueErrors
        cause = one_line(error)
        raise UserError(f"distill.real.captions={path}: truncated or no table ({cause}). Fix: write it again") from None
    _check_columns(real, list(table.columns), path)
    rows = list(zip(table[real.image_column], table[real.caption_column], strict=True))

    def pairs() -> Iterator[tuple[str, bytes, str]]:
        for name, caption in rows:
            if not (folder / str(name)).is_file():
                raise UserError(
                    f"distill.real.captions={path}: {real.image_column}={name}: no such image below {folder}. "
                    "Fix: add it, or remove the row"
                )
            yield f"{folder}: {name}", (folder / name).read_bytes(), caption if isinstance(caption, str) else ""

    return Pairs(len(rows), pairs)


def _parquet(real: "Real", path: Path) -> Pairs:
    """Read a parquet file with a column of image files, as bytes or as a struct that has `bytes`."""
    import pyarrow
    from pyarrow import parquet

    try:
        file = parquet.ParquetFile(path)
    except (pyarrow.ArrowException, OSError) as error:
        cause = one_line(error)
        raise UserError(f"distill.real: {path}: truncated or no parquet ({cause}). Fix: get it again") from None
    _check_columns(real, file.schema_arrow.names, path)

    def pairs() -> Iterator[tuple[str, bytes, str]]:
        number = 0
        for batch in file.iter_batches(ROWS, columns=[real.image_column, real.caption_column], use_threads=False):
            for row in batch.to_pylist():
                number += 1
                image, caption = row[real.image_column], row[real.caption_column]
                data = image.get("bytes") if isinstance(image, dict) else image
                if not isinstance(data, bytes):
                    raise UserError(
                        f"distill.real.image_column={real.image_column}: {path}, row {number}: expected the bytes of an "
                        f"image, got {type(data).__name__}. Fix: choose another column, or embed the images"
                    )
                yield f"{path}, row {number}", data, caption if isinstance(caption, str) else ""

    return Pairs(file.metadata.num_rows, pairs)


def _check_columns(real: "Real", names: list[str], place: Path) -> None:
    for key in ("image_column", "caption_column"):
        if (name := getattr(real, key)) not in names:
            listed = ", ".join(map(str, names[:20])) or "none"
            raise UserError(f"distill.real.{key}={name}: expected one of the columns of {place}: {listed}")

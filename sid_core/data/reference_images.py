"""Read reference images: rendered scenes (`embedded`), or files of a folder or zip (COCO's val2014).

A zip is never extracted. Images are read by index, so that several processes can divide the work: a pickled object holds no
open file, and each process opens the archive itself.
"""

import io
import os
import warnings
import zipfile
import zlib
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Protocol

import numpy as np
from PIL import Image

from ..errors import UserError
from ..storage.downloads import cache_folder, cached, is_url
from ..storage.files import digest
from ..storage.versions import versions
from .images import to_rgb
from .shapes import scenes

if TYPE_CHECKING:
    from ..config import BuildReferenceSettings, Evaluate

SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp"}
# raised by PIL and zipfile for damaged or encrypted files
DAMAGED = (OSError, SyntaxError, ValueError, RuntimeError, zipfile.BadZipFile, zlib.error, Image.DecompressionBombError)


class ReferenceImages(Protocol):
    """Reference images; picklable, to read in any order and from several processes."""

    def __len__(self) -> int: ...

    def read(self, index: int) -> np.ndarray:
        """Return image `index` as (H, W, 3) uint8; a UserError names a damaged file, and one with transparent pixels."""

    def record(self) -> dict:
        """Return {"source", "count"} and, for files, "files_sha256"; equal records mean equal images."""


def reference_images(evaluate: "BuildReferenceSettings") -> ReferenceImages:
    """Open all images of `evaluate.reference`; a UserError if missing or damaged, or not `reference_samples`."""
    if evaluate.reference == "embedded":
        return DrawnImages(evaluate.reference_samples, evaluate.split)
    images = ImageFiles(reference_path(evaluate))
    if len(images) != evaluate.reference_samples:
        raise UserError(
            f"evaluate.reference_samples={evaluate.reference_samples}: {images.path} holds {len(images)} images. "
            "Fix: give the complete set (COCO's val2014 has 40504), or correct the number"
        )
    return images


def reference_path(evaluate: "Evaluate") -> Path:
    """Return the local folder or zip of `evaluate.reference`, with a URL downloaded into the cache."""
    if is_url(evaluate.reference):
        return cached(evaluate.reference, evaluate.reference_sha256, "evaluate.reference_sha256")
    path = Path(evaluate.reference).expanduser()
    if not path.exists():
        raise UserError(f"evaluate.reference={evaluate.reference}: no such folder or zip. Fix: give its path or URL")
    return path


def cached_features(record: dict, images: dict, networks: dict, code: str) -> Path | None:
    """Return the cache path of reference features that experiments share; None for scenes, whose features take seconds.

    Args:
        record: of the reference images.
        images: record of their transforms (`protocol.image_record`).
        networks: record of the evaluation networks.
        code: digest of the code that encodes images: new code or libraries encode samples, hence the reference, again.
    """
    if "files_sha256" not in record:
        return None
    made = {"reference": record, "images": images, "networks": networks, "code": code, "versions": versions()}
    return cache_folder() / "reference" / f"{digest(made)}.safetensors"


class DrawnImages:
    """Rendered scenes as the reference of a split; no two splits share a scene."""

    def __init__(self, count: int, split: str):
        self._count = count
        self._scenes = {"evaluation": "reference", "validation": "validation-reference", "watch": "watch"}[split]
        self._block: tuple[int, np.ndarray] | None = None  # scenes are drawn in blocks

    def __len__(self) -> int:
        return self._count

    def read(self, index: int) -> np.ndarray:
        number, block = index // scenes.BLOCK, self._block
        if block is None or block[0] != number:
            block = self._block = number, scenes.draw(self._scenes, scenes.BLOCK, number * scenes.BLOCK)[0]
        return block[1][index % scenes.BLOCK]  # not self._block, which another thread may replace

    def record(self) -> dict:
        return {"source": "embedded", "count": self._count}

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_block": None}


class ImageFiles:
    """Image files below a folder or in a zip, sorted by name; other files are ignored."""

    def __init__(self, path: Path):
        self.path = path
        self._archive: tuple[int, zipfile.ZipFile] | None = None  # with its process
        if path.is_dir():
            files = (p.relative_to(path) for p in path.rglob("*") if p.is_file())
            self._names = sorted(str(name) for name in files if is_image(name))
        else:
            self._names = sorted(name for name in self._open().namelist() if is_image(PurePosixPath(name)))
        if not self._names:
            raise UserError(f"evaluate.reference: {path} holds no images ({', '.join(sorted(SUFFIXES))})")

    def __len__(self) -> int:
        return len(self._names)

    def read(self, index: int) -> np.ndarray:
        name = self._names[index]
        where = f"{self.path}: {name}"
        try:
            with warnings.catch_warnings(), Image.open(io.BytesIO(self._bytes(name))) as picture:
                warnings.simplefilter("ignore")  # of odd EXIF data; damaged pixels raise
                return to_rgb(picture, f"evaluate.reference: {where}")
        except DAMAGED as error:
            message = f"evaluate.reference: {where} is damaged or no image ({error}). Fix: get the set again"
            raise UserError(message) from None

    def record(self) -> dict:
        """Return a record, equal for a zip and its extracted folder, of relative names, sizes and CRC-32."""
        common = os.path.commonpath([PurePosixPath(name).parent for name in self._names])
        files = [[os.path.relpath(name, common or "."), *self._size_and_crc(name)] for name in self._names]
        return {"source": "files", "count": len(self), "files_sha256": digest(files)}

    def _size_and_crc(self, name: str) -> tuple[int, int]:
        if self.path.is_dir():
            data = self._bytes(name)
            return len(data), zlib.crc32(data)
        info = self._open().getinfo(name)
        return info.file_size, info.CRC

    def _bytes(self, name: str) -> bytes:
        return (self.path / name).read_bytes() if self.path.is_dir() else self._open().read(name)

    def _open(self) -> zipfile.ZipFile:
        # a forked process shares its parent's file position, so it must not share the open file
        if self._archive is None or self._archive[0] != os.getpid():
            try:
                self._archive = os.getpid(), zipfile.ZipFile(self.path)
            except (zipfile.BadZipFile, OSError) as error:
                message = (
                    f"evaluate.reference: {self.path} is no readable zip ({error}). Fix: get it again, or give a folder"
                )
                raise UserError(message) from None
        return self._archive[1]

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_archive": None}


def is_image(path: PurePosixPath | Path) -> bool:
    """Return whether a path is that of an image."""
    # archivers add names that start with a dot, and __MACOSX
    return path.suffix.lower() in SUFFIXES and not any(part.startswith((".", "__MACOSX")) for part in path.parts)

"""Write and read shards of samples: a tar of PNGs in index order, with a sidecar that records each sample.

A shard is written atomically, and two writers of equal images write equal bytes. Reading checks every image against the
record, because a gap that shifted images against captions would still give a plausible score.
"""

import hashlib
import io
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from ..errors import UserError
from ..storage.files import atomic_path, verify_sidecar, write_sidecar
from .images import decode_png, pixel_sha256
from .pool import batches


def captions_sha256(captions: list[str]) -> str:
    """Return the hex SHA-256 of captions joined by line feeds."""
    return hashlib.sha256("\n".join(captions).encode()).hexdigest()


def file_name(index: int) -> str:
    """Return the file name of sample `index` inside its shard."""
    return f"{index:08d}.png"


def write_shard(path: Path, samples: Iterable[tuple[int, bytes]], record: dict) -> None:
    """Write `path` (.tar) and its sidecar from a stream of index and PNG bytes, which may fill `record` meanwhile."""
    with atomic_path(path) as temporary, tarfile.open(temporary, "w", format=tarfile.USTAR_FORMAT) as archive:
        for index, data in samples:
            header = tarfile.TarInfo(file_name(index))  # mtime, uid and gid are 0: equal images make equal bytes
            header.size = len(data)
            archive.addfile(header, io.BytesIO(data))
            archive.members = []  # tarfile keeps every header otherwise
    write_sidecar(path, record)


def read_shard(path: Path, batch: int) -> Iterator[tuple[list[int], np.ndarray]]:
    """Yield (indices, images (b, H, W, 3) uint8) in order, `batch` at a time; a UserError names damage and gaps."""
    for members in batches(read_members(path, verify_sidecar(path)["record"]["samples"]), batch):
        yield [entry["index"] for entry, _ in members], np.stack([decode_member(path, member) for member in members])


def read_members(path: Path, entries: list[dict]) -> Iterator[tuple[dict, bytes]]:
    """Yield entry and PNG bytes of each sample by `entries` of the record; a UserError names damage and gaps."""
    _check_complete(path, {entry["index"] for entry in entries})
    with tarfile.open(path, "r:") as archive:
        for entry in entries:
            name = file_name(entry["index"])
            member = archive.next()
            if member is None or member.name != name:
                found = "its end" if member is None else member.name
                raise UserError(f"{path}: expected {name}, got {found}. Fix: delete it and run again")
            try:
                data = archive.extractfile(member).read()
            except tarfile.TarError:
                data = b""  # the archive ends inside the image; decoding names it
            yield entry, data
            archive.members = []


def decode_member(path: Path, member: tuple[dict, bytes]) -> np.ndarray:
    """Decode an item of `read_members`; a UserError names a truncated image, or another than the recorded one."""
    entry, data = member
    name = file_name(entry["index"])
    image = decode_png(data, f"{path}: {name}")
    if pixel_sha256(image) != entry["sha256"]:
        raise UserError(f"{path}: {name} is not the recorded image. Fix: delete it and run again")
    return image


def _check_complete(path: Path, recorded: set[int]) -> None:
    """Check that the archive contains every recorded index; listing it is cheap compared with decoding."""
    try:
        with tarfile.open(path, "r:") as archive:
            stored = set(archive.getnames())
    except (tarfile.TarError, EOFError) as error:
        raise UserError(f"{path}: no readable tar ({error}). Fix: delete it and run again") from None
    missing = [index for index in recorded if file_name(index) not in stored]
    if missing or not recorded:
        raise UserError(f"{path}: samples missing: {ranges(missing) or 'all'}. Fix: delete it and run again")


def ranges(indices: Iterable[int]) -> str:
    """Format indices for messages, as in 3, 7–9, 12; an ellipsis ends a long list."""
    runs: list[list[int]] = []
    for index in sorted(indices):
        if runs and index == runs[-1][1] + 1:
            runs[-1][1] = index
        else:
            runs.append([index, index])
    shown = [str(low) if low == high else f"{low}–{high}" for low, high in runs[:10]]
    return ", ".join(shown) + (", …" if len(runs) > 10 else "")

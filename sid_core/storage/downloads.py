"""Download large files by URL: resumable, verified, atomic.

Received bytes are in `.NAME.part` next to the target, with the server's ETag: the next attempt requests the rest with Range and
If-Range, and starts over if the file changed.
"""

import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

from ..errors import UserError
from .files import digest, read_json, sha256_file, write_json
from .transfer import TransferInterrupted, note_path, receive

log = logging.getLogger(__name__)

TRIES = 6  # consecutive attempts that receive less than PROGRESS bytes each
PROGRESS = 1 << 20
BACKOFF_S = 1.0  # doubled with each attempt
LONGEST_WAIT_S = 120.0  # longest Retry-After of a server that is obeyed


def is_url(text: str) -> bool:
    """Return whether a setting is a URL rather than a path."""
    return text.startswith(("http://", "https://"))


def cache_folder() -> Path:
    """Return the folder of files that experiments share: SID_CORE_CACHE, by default ~/.cache/sid_core."""
    return Path(os.environ.get("SID_CORE_CACHE") or "~/.cache/sid_core").expanduser()


def cached(url: str, sha256: str | None, key: str) -> Path:
    """Return the verified cached file of `url`, downloaded if missing; `key` names the setting of the hash in messages.

    Without `sha256` the hash of the first download is recorded and expected from then on.
    """
    name = PurePosixPath(unquote(urlsplit(url).path)).name or "file"
    unpinned, folder = (cache_folder() / "files" / digest([url, pin])[:16] for pin in (None, sha256))
    if sha256 and not folder.exists() and _recorded(unpinned) == sha256:
        folder = unpinned  # downloaded before the settings had its hash
    path = folder / name
    with _lock(folder / "record.json"):
        recorded = _recorded(folder)
        found = download(url, path, sha256)
        if recorded is None:
            write_json(folder / "record.json", {"url": url, "sha256": found, "bytes": path.stat().st_size})
            if sha256 is None:
                log.info("%s: recorded sha256 %s; set %s to it to accept no other file", url, found, key)
        elif found != recorded:
            raise UserError(f"{path}: has sha256 {found}, when it was downloaded {recorded}; delete {folder} and rerun")
    return path


def _recorded(folder: Path) -> str | None:
    record = folder / "record.json"
    return read_json(record)["sha256"] if record.is_file() else None


def download(url: str, out: Path, sha256: str | None = None, size: int | None = None) -> str:
    """Download `url` to `out`, or verify an existing `out`, and return its hex sha256; None expects any hash or size.

    If it fails, received bytes are retained for the next call, unless they are wrong.
    """
    out = Path(out)
    with _lock(out):
        if not out.is_file():
            return _fetch(url, out, sha256, size)
        found = sha256_file(out)
        if sha256 not in (None, found) or size not in (None, out.stat().st_size):
            raise UserError(
                f"{out}: has sha256 {found} and {out.stat().st_size} bytes, expected {sha256 or 'any'} and "
                f"{size or 'any'}; delete it, or correct what is expected"
            )
        return found


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    """Let one process at a time download a file."""
    from filelock import FileLock, Timeout

    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path.with_name(f".{path.name}.lock"))
    try:
        lock.acquire(blocking=False)
    except Timeout:
        log.info("%s: another process downloads it; waiting", path)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _fetch(url: str, out: Path, sha256: str | None, size: int | None) -> str:
    """Retry until the file is complete, wrong, or makes no progress."""
    part = out.with_name(f".{out.name}.part")
    failures, restarted = 0, False
    while True:
        before = _size(part)
        try:
            receive(url, part, size)
        except TransferInterrupted as interruption:
            failures = failures + 1 if _size(part) - before < PROGRESS else 1
            if failures == TRIES:
                raise UserError(
                    f"{url}: {interruption}, {TRIES} times in a row; {_size(part)} bytes are kept. "
                    "Fix: run again later to resume, or give another URL or the path of a copy"
                ) from None
            _pause(url, interruption, BACKOFF_S * 2 ** (failures - 1))
            continue
        found = sha256_file(part)
        if sha256 in (None, found):
            os.replace(part, out)
            note_path(part).unlink(missing_ok=True)
            return found
        part.unlink()
        if restarted or not before:
            raise UserError(f"{url}: expected sha256 {sha256}, got {found}. Fix: correct the hash or the URL")
        restarted = True  # an earlier attempt may have left wrong bytes: download once more from byte 0


def _size(part: Path) -> int:
    return part.stat().st_size if part.is_file() else 0


def _pause(url: str, interruption: TransferInterrupted, backoff_s: float) -> None:
    wait_s = backoff_s if interruption.wait_s is None else interruption.wait_s
    if wait_s > LONGEST_WAIT_S:
        raise UserError(f"{url}: {interruption}; it asks to wait {wait_s:.0f} s: run again after that")
    log.info("%s: %s; trying again in %.0f s", url, interruption, wait_s)
    time.sleep(wait_s)

"""Write files atomically and let consumers verify them by sidecars and manifests.

Snakemake trusts names and times, even of a truncated file. So every stage writes to a temporary path and renames, and every
consumer checks the sha256 that its producer recorded.
"""

import fcntl
import glob
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import NoReturn

from ..errors import UserError
from . import heartbeat
from .heartbeat import every, place

MANIFEST = "manifest.json"
LOCK = "sid-core.lock"  # in each temporary folder of this program
LONGEST_LINE = 100_000  # characters of a caption; the longest texts of web pages have thousands


@contextmanager
def atomic_path(path: str | Path, *marks: str, only: str | None = None) -> Iterator[Path]:
    """Yield a temporary path for a file or directory next to `path`; rename it to `path` on success, else remove it."""
    path = Path(path)
    check_place(path, *marks, only=only)
    if path.is_dir():
        path = path.resolve()  # replace the directory a link leads to, not the link
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise UserError(f"{path}: expected a path in a folder, got one below a file") from None
    folder = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    temporary = folder / path.name
    try:
        with _alive(folder):
            remove_temporaries(path)  # before writing, which may need the disk space
            yield temporary
            if temporary.is_file():
                with open(temporary, "rb") as handle:
                    os.fsync(handle.fileno())
            if os.path.lexists(path) and path.is_dir() != temporary.is_dir():
                found, new = ("folder", "file") if path.is_dir() else ("file", "folder")
                raise UserError(f"{path}: expected a {new}, got a {found}. Fix: rename or delete it")
            if path.is_dir():
                os.rename(path, folder / "replaced")
            os.rename(temporary, path)
            remove_temporaries(path)  # of writers that seemed alive at first
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _alive(folder: Path) -> Iterator[None]:
    """Mark `folder` as being written by a lock, and by its time for machines that do not see the lock."""
    with open(folder / LOCK, "wb", buffering=0) as lock, every(heartbeat.PERIOD_S, lambda: os.utime(folder)):
        with suppress(OSError):  # a file system without locks, or a full one
            fcntl.flock(lock, fcntl.LOCK_EX)
            lock.write((place() or "").encode())
        yield


def remove_temporaries(path: Path) -> None:
    """Remove the temporary folders, gigabytes each, of killed writes of `path`."""
    for folder in path.parent.glob(f".{glob.escape(path.name)}.????????"):
        with suppress(OSError):  # another process was first
            if (folder / LOCK).is_file() and _is_abandoned(folder):
                shutil.rmtree(folder, ignore_errors=True)


def _is_abandoned(folder: Path) -> bool:
    with open(folder / LOCK, "r+", encoding="utf-8") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if lock.read() == place():
                return True
        except BlockingIOError:
            return False
        except OSError:
            pass  # a file system without locks
    # locks of another machine may be invisible, or not taken yet; both times are the file server's
    with tempfile.TemporaryFile(dir=folder.parent) as now:
        return os.fstat(now.fileno()).st_mtime - folder.stat().st_mtime > 4 * heartbeat.PERIOD_S


def check_place(path: str | Path, *marks: str, only: str | None = None) -> None:
    """Reject a path without a name, and a directory that this program did not create.

    Accepted are a directory without any file, and one whose manifest (or a mark in its format) lists all of `marks` and every
    file: some may be missing, as Snakemake removes declared outputs before a rerun. With `only`: one whose file names all
    match this pattern.
    """
    path = Path(path)
    if path.name in ("", ".."):
        raise UserError(f"{path}: expected the name of a new file or folder, such as {path / 'out'}")
    if path.is_dir() and (foreign := _foreign_entry(path, marks, only)):
        raise UserError(f"{path}: exists and is not created by sid-core ({foreign} in it). Fix: move or delete it")


def _foreign_entry(path: Path, marks: tuple[str, ...], only: str | None) -> str | None:
    entries = [entry for entry in path.rglob("*") if entry.is_symlink() or not entry.is_dir()]
    found = {str(entry.relative_to(path)) for entry in entries} - {".snakemake_timestamp"}
    if only:
        foreign = {name for name in found if not re.fullmatch(only, name)}
    elif not found:
        return None
    else:
        listed = next(filter(None, (_manifest_names(path / name) for name in (MANIFEST, *marks))), None)
        if listed is None:
            return f"no {MANIFEST} of its kind"
        if missing := set(marks) - listed:
            return f"no {' and '.join(sorted(missing))}"
        foreign = found - listed
    return min(foreign, default=None)


def _manifest_names(path: Path) -> set[str]:
    """Return the files that a manifest lists, and its own name; nothing for another program's file."""
    try:
        files = json.loads(path.read_text(encoding="utf-8"))["files"]
        return {path.name, *files} if all(entry.keys() == {"sha256", "bytes"} for entry in files.values()) else set()
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return set()


def write_text(path: str | Path, text: str) -> None:
    """Write UTF-8 text atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | Path, value: object) -> None:
    """Write JSON atomically; raise ValueError for NaN and infinity, which are not JSON."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


class _Fields(dict):
    """An object of a JSON file: where `[key]` finds nothing the file is at fault, and a UserError names it."""

    def __init__(self, path: str | Path, pairs: list[tuple[str, object]]):
        super().__init__(pairs)
        self._path = path

    def __missing__(self, key: str) -> NoReturn:
        found = ", ".join(self) or "no key"
        raise UserError(
            f"{self._path}: {key!r} is missing, beside {found}. Fix: add it, or fetch or make the file again"
        )


def read_json(path: str | Path) -> dict:
    """Read a JSON file; raise UserError for a missing or damaged one, and later where a key is read that it does not have."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"), object_pairs_hook=partial(_Fields, path))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not valid JSON ({error}). Fix: give the file of a stage, or rerun it") from None


def sha256_file(path: str | Path) -> str:
    """Return the hex sha256 of a file's bytes."""
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def digest(value: object) -> str:
    """Return the hex sha256 of a JSON-serialisable value in canonical form (sorted keys, no spaces)."""
    canonical = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()


def flat(values: dict, prefix: str = "") -> dict[str, object]:
    """Flatten a nested record to dotted names: {"a": {"b": 1}} -> {"a.b": 1}."""
    result = {}
    for key, value in values.items():
        result |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return result


def write_manifest(folder: str | Path, record: dict | None = None) -> None:
    """Record the sha256 and size of every file below `folder`, and `record`, in `folder`/manifest.json."""
    folder = Path(folder)
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != MANIFEST)
    entries = {str(p.relative_to(folder)): {"sha256": sha256_file(p), "bytes": p.stat().st_size} for p in files}
    write_json(folder / MANIFEST, {"record": record or {}, "files": entries})


def verify_manifest(folder: str | Path) -> dict:
    """Check every file that `folder`'s manifest lists and return its `record`; raise UserError for a missing or changed one."""
    folder = Path(folder)
    if not (folder / MANIFEST).is_file():
        raise UserError(f"{folder}: not a finished result (no {MANIFEST}). Fix: run the stage that makes it")
    manifest = read_json(folder / MANIFEST)
    for name, entry in manifest["files"].items():
        if not (folder / name).is_file():
            raise UserError(f"{folder / name}: listed in {MANIFEST} but missing. Fix: delete {folder} and run again")
        _check_content(folder / name, entry, folder)
    return manifest["record"]


def _check_content(path: Path, entry: dict, remove: Path) -> None:
    if path.stat().st_size != entry["bytes"] or sha256_file(path) != entry["sha256"]:
        raise UserError(f"{path}: differs from its recorded sha256 (truncated or edited). Fix: delete {remove}, rerun")


def sidecar(path: str | Path) -> Path:
    """Return the path of the record next to a file: 00000.tar -> 00000.json."""
    return Path(path).with_suffix(".json")


def write_sidecar(path: str | Path, record: dict, sha256: str | None = None) -> None:
    """Record a file's sha256 (computed unless given), size and `record` in its sidecar, which marks the file as finished."""
    path = Path(path)
    write_json(sidecar(path), {"sha256": sha256 or sha256_file(path), "bytes": path.stat().st_size, "record": record})


def verify_sidecar(path: str | Path) -> dict:
    """Check a file against its sidecar {"sha256", "bytes", "record"} and return that; raise UserError where they differ."""
    path = Path(path)
    if not path.is_file() or not sidecar(path).is_file():
        raise UserError(f"{path}: missing, or without its record {sidecar(path).name}. Fix: run the stage of it")
    entry = read_json(sidecar(path))
    _check_content(path, entry, path)
    return entry


def read_lines(path: str | Path, what: str) -> list[str]:
    """Read the stripped lines of a UTF-8 text file; `what` names a line in messages. Blank lines would shift indices."""
    try:
        raw = Path(path).read_bytes()
    except (FileNotFoundError, IsADirectoryError):
        raise UserError(f"{path}: no such {what} file") from None
    lines: list[str] = []
    for number, line in enumerate(raw.splitlines(), 1):
        where = f"{path}, line {number}"
        try:
            text = line.decode("utf-8").strip()
        except UnicodeDecodeError as error:
            raise UserError(f"{where}: not UTF-8 ({error.reason} at byte {error.start})") from None
        if len(text) > LONGEST_LINE:
            raise UserError(f"{where}: {len(text):,} characters; expected one {what} a line, at most {LONGEST_LINE:,}")
        if not text:
            raise UserError(f"{where}: blank; expected one {what} a line")
        lines.append(text)
    if not lines:
        raise UserError(f"{path}: empty; expected one {what} a line")
    return lines

"""Files that are whole or absent: atomic writes, checksums, manifests that consumers verify.

Snakemake trusts file names and times. A truncated file with an old time looks finished to it, so every stage writes under a
temporary name and renames, and every consumer checks the sha256 its producer recorded.
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
from pathlib import Path

from ..errors import UserError
from . import heartbeat
from .heartbeat import every, place

MANIFEST = "manifest.json"


LOCK = "sid-core.lock"  # in each temporary folder of this program


@contextmanager
def atomic_path(path: str | Path, *marks: str, only: str | None = None) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it to `path` on success, remove it on failure.

    Works for a file or a directory that the block creates. A directory that is there is replaced by a directory alone, and only
    by the rule of `check_place`.

    Raises:
        UserError: `path` has no name of its own, lies below a file, or what is there is not to be replaced.
    """
    path = Path(path)
    check_place(path, *marks, only=only)
    if path.is_dir():
        path = path.resolve()  # of a link, the directory it leads to is replaced
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise UserError(f"{path}: lies below a file; give a place in a folder") from None
    folder = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    temporary = folder / path.name
    try:
        with _alive(folder):
            remove_abandoned(path)  # this one may need the room
            yield temporary
            if temporary.is_file():
                with open(temporary, "rb") as handle:
                    os.fsync(handle.fileno())
            if os.path.lexists(path) and path.is_dir() != temporary.is_dir():
                there, new = ("folder", "file") if path.is_dir() else ("file", "folder")
                raise UserError(
                    f"{path}: is a {there}, and what is written is a {new}; give another name, or delete it first"
                )
            if path.is_dir():
                os.rename(path, folder / "replaced")
            os.rename(temporary, path)
            remove_abandoned(path)  # what seemed alive at first
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _alive(folder: Path) -> Iterator[None]:
    """Show that `folder` is being written: by a lock, and by its time to machines that do not see the lock."""
    with open(folder / LOCK, "wb", buffering=0) as lock, every(heartbeat.PERIOD_S, lambda: os.utime(folder)):
        with suppress(OSError):  # a file system without locks, or without room
            fcntl.flock(lock, fcntl.LOCK_EX)
            lock.write((place() or "").encode())
        yield


def remove_abandoned(path: Path) -> None:
    """Remove the temporary folders that killed writes of `path` left: gigabytes each."""
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
            pass  # no locks here
    # of another machine, whose locks may be out of sight, or not locked yet. Both times are the file server's
    with tempfile.TemporaryFile(dir=folder.parent) as now:
        return os.fstat(now.fileno()).st_mtime - folder.stat().st_mtime > 4 * heartbeat.PERIOD_S


def check_place(path: str | Path, *marks: str, only: str | None = None) -> None:
    """Refuse to write a result where nothing can be named, or where a directory lies that is none of this program's.

    Its own are those without any file, and those that hold all of `marks`, with a manifest (or a mark like one) that lists every
    file. Where there are no marks: also those with a stage's frozen settings beside them, since Snakemake takes the manifest
    out before the stage runs again, and leaves other files. With `only`, a pattern: those whose files have all such names.
    """
    path = Path(path)
    if path.name in ("", ".."):
        raise UserError(f"{path}: expected what is to be made by its name, such as {path / 'out'}")
    if path.is_dir() and (why := _why_foreign(path, marks, only)):
        raise UserError(
            f"{path}: exists and is none of this program's ({why} in it), so it is not replaced; "
            "give another place, or move or delete it first"
        )


def _why_foreign(path: Path, marks: tuple[str, ...], only: str | None) -> str | None:
    entries = [entry for entry in path.rglob("*") if entry.is_symlink() or not entry.is_dir()]
    found = {str(entry.relative_to(path)) for entry in entries} - {".snakemake_timestamp"}
    if only:
        foreign = {name for name in found if not re.fullmatch(only, name)}
    elif not found or (not marks and Path(f"{path}.settings.yaml").is_file()):
        return None
    elif missing := [name for name in marks or (MANIFEST,) if name not in found]:
        return f"no {' and '.join(missing)}"
    else:
        listed = [names for name in (MANIFEST, *marks) if (names := _listed(path / name))]
        if not listed:
            return f"no {MANIFEST} of its kind"
        foreign = found - listed[0]
    return min(foreign, default=None)


def _listed(path: Path) -> set[str]:
    """Names of the files that a manifest of this program lists, with its own; none where it is another program's."""
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
    """Write JSON atomically; NaN and infinity are refused (they are not JSON)."""
    write_text(path, json.dumps(value, indent=2, sort_keys=False, allow_nan=False) + "\n")


def read_json(path: str | Path) -> dict:
    """Read a JSON file; a missing or damaged one is a UserError that names it."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(
            f"{path}: not valid JSON ({error}); expected a file that a stage wrote: give that one; or, where one wrote this, "
            "delete it and run again"
        ) from None


def sha256_file(path: str | Path) -> str:
    """Hex sha256 of a file's bytes."""
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def digest(value: object) -> str:
    """Hex sha256 of a JSON-serialisable value in canonical form (sorted keys, no spaces)."""
    canonical = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()


def flat(values: dict, prefix: str = "") -> dict[str, object]:
    """A nested record by dotted names: {"a": {"b": 1}} -> {"a.b": 1}."""
    result = {}
    for key, value in values.items():
        result |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return result


def write_manifest(folder: str | Path, record: dict | None = None) -> None:
    """Record the sha256 and size of every file below `folder` in `folder`/manifest.json, with `record` beside them."""
    folder = Path(folder)
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != MANIFEST)
    entries = {str(p.relative_to(folder)): {"sha256": sha256_file(p), "bytes": p.stat().st_size} for p in files}
    write_json(folder / MANIFEST, {"record": record or {}, "files": entries})


def verify_manifest(folder: str | Path) -> dict:
    """Check every file `folder`'s manifest names; return its `record`.

    Raises UserError naming the first file that is missing, of another size, or of other content.
    """
    folder = Path(folder)
    if not (folder / MANIFEST).is_file():
        raise UserError(
            f"{folder}: has no {MANIFEST}, so it is not a finished result; run the stage that makes it again"
        )
    manifest = read_json(folder / MANIFEST)
    for name, entry in manifest["files"].items():
        path = folder / name
        if not path.is_file():
            raise UserError(f"{path}: listed in {MANIFEST} but missing; delete {folder} and run again")
        if path.stat().st_size != entry["bytes"] or sha256_file(path) != entry["sha256"]:
            raise UserError(
                f"{path}: differs from its recorded sha256 (truncated or edited); delete {folder} and run again"
            )
    return manifest["record"]


def sidecar(path: str | Path) -> Path:
    """The record beside a file: 00000.tar -> 00000.json."""
    return Path(path).with_suffix(".json")


def write_sidecar(path: str | Path, record: dict, sha256: str | None = None) -> None:
    """Record a finished file's sha256 (known already, perhaps) and size, with `record`, in its sidecar. Written last: it marks the file
    as whole.
    """
    path = Path(path)
    write_json(sidecar(path), {"sha256": sha256 or sha256_file(path), "bytes": path.stat().st_size, "record": record})


def verify_sidecar(path: str | Path) -> dict:
    """Check a file against its sidecar; return the sidecar ({"sha256", "bytes", "record"}).

    Raises UserError naming the file when it is missing, truncated or of other content.
    """
    path = Path(path)
    if not path.is_file() or not sidecar(path).is_file():
        raise UserError(
            f"{path}: missing, or without its record {sidecar(path).name}; run the stage that makes it again"
        )
    entry = read_json(sidecar(path))
    if path.stat().st_size != entry["bytes"] or sha256_file(path) != entry["sha256"]:
        raise UserError(f"{path}: differs from its recorded sha256 (truncated or edited); delete it and run again")
    return entry


LONGEST_LINE = 100_000  # characters of a caption; of web pages' texts the longest have thousands


def read_lines(path: str | Path, what: str) -> list[str]:
    """Read a UTF-8 text file of one entry a line, stripped, case kept; blank lines are refused where they would shift indices.

    Raises:
        UserError: missing or empty file, invalid UTF-8 (the line is named), a blank line inside, a line over 100,000 characters.
    """
    try:
        raw = Path(path).read_bytes()
    except (FileNotFoundError, IsADirectoryError):
        raise UserError(f"{path}: no such {what} file") from None
    lines: list[str] = []
    for number, line in enumerate(raw.splitlines(), 1):
        try:
            text = line.decode("utf-8").strip()
        except UnicodeDecodeError as error:
            raise UserError(f"{path}, line {number}: not UTF-8 ({error.reason} at byte {error.start})") from None
        if len(text) > LONGEST_LINE:
            raise UserError(
                f"{path}, line {number}: {len(text):,} characters; expected one {what} a line, at most {LONGEST_LINE:,}"
            )
        if not text:
            raise UserError(f"{path}, line {number}: blank; expected one {what} a line")
        lines.append(text)
    if not lines:
        raise UserError(f"{path}: empty; expected one {what} a line")
    return lines

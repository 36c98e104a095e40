"""Keep a JSON record next to the log of a job: its progress, and how it ended. Status reads it; nobody parses a log."""

import os
import sys
from contextlib import suppress
from pathlib import Path

from ..errors import UserError, redact
from .files import read_json, write_json


def record_path(log: Path) -> Path:
    """Return the record that belongs to a log."""
    return log.with_name(f"{log.name}.json")


def begin() -> None:
    """Remove the record of an earlier attempt; the ranks of one run leave that to the process that started them."""
    path = _own()
    if path and "RANK" not in os.environ:
        path.unlink(missing_ok=True)


def update(**known: object) -> None:
    """Add to this job's record; without a log there is none, and a full disk costs no job."""
    path = _own()
    if path:
        with suppress(OSError):
            write_json(path, read(path) | known)


def fail(message: str, interrupted: bool = False) -> None:
    """Print an error on stderr, and record it as the end of this job."""
    message = redact(message)
    print(f"error: {message}", file=sys.stderr)
    update(ended="interrupted" if interrupted else "failed", message=message)


def read(path: Path) -> dict:
    """Return a record, empty where there is none or it is damaged."""
    with suppress(UserError):
        return read_json(path)
    return {}


def _own() -> Path | None:
    """Return the record beside the log that stderr goes to; None on a terminal or in a pipe."""
    with suppress(OSError):
        log = Path("/proc/self/fd/2").readlink()
        if log.suffix == ".log" and log.is_file():
            return record_path(log)
    return None

"""Store the progress and the end of a job in a JSON record next to its log, for `status`."""

import os
import sys
from contextlib import suppress
from pathlib import Path

from ..errors import UserError, redact
from .files import read_json, write_json


def record_path(log: Path) -> Path:
    """Return the path of a log's record."""
    return log.with_name(f"{log.name}.json")


def begin() -> None:
    """Remove the record of an earlier attempt, except in a rank: its launcher has done so."""
    path = _own()
    if path and "RANK" not in os.environ:
        path.unlink(missing_ok=True)


def update(**known: object) -> None:
    """Add values to this job's record, if it has a log; a full disk must not end the job."""
    path = _own()
    if path:
        with suppress(OSError):
            write_json(path, read(path) | known)


def fail(message: str, interrupted: bool = False) -> None:
    """Print an error to stderr and record it as the end of this job."""
    message = redact(message)
    print(f"error: {message}", file=sys.stderr)
    update(ended="interrupted" if interrupted else "failed", message=message)


def read(path: Path) -> dict:
    """Return a record, empty if missing or damaged."""
    with suppress(UserError):
        return read_json(path)
    return {}


def _own() -> Path | None:
    """Return the record of the log that stderr is redirected to; None for a terminal or pipe."""
    with suppress(OSError):
        log = Path("/proc/self/fd/2").readlink()
        if log.suffix == ".log" and log.is_file():
            return record_path(log)
    return None

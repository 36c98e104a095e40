"""Assign GPUs to the jobs of a machine without a scheduler, so that each job sees only its own.

Snakemake counts GPUs and does not choose them. A job locks one empty folder in /tmp per GPU: the kernel releases a lock when the
last process that holds it ends. All users, and containers that share /tmp, see the locks. The folders are not deleted.
"""

import fcntl
import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ..errors import UserError
from .machine import SUBMITTER_JOB

log = logging.getLogger(__name__)
POLL_S = 0.5
FOLDER = Path("/tmp")  # not TMPDIR, which may differ from job to job
PREFIX = "sid-core-gpu-"


def visible_gpus() -> list[str]:
    """Return the names of the usable GPUs: CUDA_VISIBLE_DEVICES if it is set, else all of this machine."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [name for name in named.split(",") if name]
    return [str(i) for i, _ in enumerate(Path("/dev").glob("nvidia[0-9]*"))]


@contextmanager
def acquire_gpus(count: int) -> Iterator[list[int]]:
    """Hold `count` of the visible GPUs, waiting for other jobs if needed, and hide all others from this process.

    Slurm assigns GPUs to the jobs it runs; only local jobs of a Snakemake within a Slurm job share those of that job.
    Yield the locks' file descriptors, for child processes that must hold them too; none on a machine without GPUs.
    """
    names = visible_gpus()
    if os.environ.get("SLURM_JOB_ID") != os.environ.get(SUBMITTER_JOB) or not names:
        yield []
        return
    if count > len(names):
        raise UserError(f"gpu={count}: expected at most {len(names)}, the GPUs {','.join(names)} of this machine")
    before, held = os.environ.get("CUDA_VISIBLE_DEVICES"), _take(names, count)
    os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(held)
    try:
        yield list(held.values())
    finally:
        for each in held.values():
            os.close(each)
        os.environ.pop("CUDA_VISIBLE_DEVICES")
        if before is not None:
            os.environ["CUDA_VISIBLE_DEVICES"] = before


def _take(names: list[str], count: int) -> dict[str, int]:
    """Lock `count` of the GPUs, one job at a time: two jobs that hold half each would wait forever."""
    held: dict[str, int] = {}
    gate, waits = None, False
    while len(held) < count:
        gate = _hold("gate") if gate is None else gate
        for name in names if gate is not None else ():
            if name not in held and len(held) < count and (lock := _hold(name)) is not None:
                held[name] = lock
        if len(held) < count:
            if not waits:
                log.info("waiting for %d of the GPUs %s", count, ",".join(names))
            waits = True
            time.sleep(POLL_S)
    if gate is not None:
        os.close(gate)
    return held


def _hold(name: str) -> int | None:
    """Return a file descriptor that locks `name` on this machine, or None if another process holds the lock."""
    place = FOLDER / f"{PREFIX}{name.replace('/', '_')}"
    with suppress(FileExistsError):
        place.mkdir()
        place.chmod(0o755)  # despite the umask: other users must see the lock
    try:
        # a folder: systemd, which removes old entries from /tmp, skips locked folders
        held = os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UserError(f"{place}: {error.strerror}; expected a folder of this program that all may read") from None
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(held).st_nlink:  # it was not removed meanwhile
            return held
    except BlockingIOError:
        pass
    os.close(held)
    return None

"""Hold a folder against a second writer by a lease file."""

import fcntl
import json
import os
import socket
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import UserError
from . import heartbeat
from .files import read_json, write_text
from .heartbeat import every, place, process_start


@contextmanager
def lease(folder: str | Path) -> Iterator[None]:
    """Hold `folder` against a second writer: a killed Snakemake leaves its child running, and a restart starts another.

    `folder`/lease.json names the owner (host, place, pid, job id); its modification time is the heartbeat. An owner of the same
    place is checked by its process, one of another host or container by its heartbeat, over up to four periods. An owner that
    was suspended for so long, and finds its lease taken over, exits at once.
    """
    path = Path(folder) / "lease.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    pid, job = os.getpid(), os.environ.get("SLURM_JOB_ID")
    owner = {"host": socket.gethostname(), "place": place(), "pid": pid, "start": process_start(pid), "job": job}
    payload = json.dumps(owner | {"token": uuid.uuid4().hex})
    watched = None
    while True:
        with _guard(path):
            watched = _check_owner(path, watched)
            if watched is None:
                write_text(path, payload)
                break
        time.sleep(heartbeat.PERIOD_S / 15)

    def beat() -> None:
        if path.read_text(encoding="utf-8") != payload:
            message = f"error: {folder}: taken over by another process while this one was suspended; exiting"
            print(message, file=sys.stderr, flush=True)
            os._exit(1)  # cleanup would write to a folder of another owner
        os.utime(path)

    try:
        with every(heartbeat.PERIOD_S, beat):
            yield
    finally:
        with _guard(path):
            if path.is_file() and path.read_text(encoding="utf-8") == payload:
                path.unlink()


@contextmanager
def _guard(path: Path) -> Iterator[None]:
    """Lock reading and replacing a lease: of two processes that find a dead owner, the second must find the first."""
    with open(path.with_name(".lease.guard"), "a") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)  # released when the file is closed, also by a kill
        yield


Watched = tuple[str, int, float]  # a lease's text and heartbeat, and the time since which both are unchanged


def _check_owner(path: Path, watched: Watched | None) -> Watched | None:
    """Raise UserError for a live owner; return the observation for the next poll, or None if the lease is free."""
    if not path.is_file():
        return None
    owner, beaten_ns, now_s = read_json(path), path.stat().st_mtime_ns, time.monotonic()
    if not isinstance(owner, dict) or not {"host", "pid", "start", "job"} <= owner.keys():
        raise UserError(f"{path}: not created by sid-core. Fix: give another folder")
    age_s, seen = time.time() - beaten_ns / 1e9, (path.read_text(encoding="utf-8"), beaten_ns)
    alive = _is_running(owner)
    if alive is None:
        watched = watched or (*seen, now_s)
        alive = watched[:2] != seen
        # measured by this host's clock alone: clocks of hosts may differ by minutes
        if not alive and age_s < 240 * heartbeat.PERIOD_S and now_s - watched[2] < 4 * heartbeat.PERIOD_S:
            return watched
    if alive:
        job = f", Slurm job {owner['job']}" if owner["job"] else ""
        raise UserError(
            f"{path.parent}: in use by process {owner['pid']} on {owner['host']}{job} "
            f"(last heartbeat {age_s:.0f} s ago). Fix: wait for it or stop it"
        )
    return None


def _is_running(owner: dict) -> bool | None:
    """Return whether the owner's process runs; None for one of another host or container."""
    is_here = owner.get("place") == place() is not None
    return process_start(owner["pid"]) == owner["start"] is not None if is_here else None


def living_owner(folder: str | Path) -> dict | None:
    """Return the owner of the lease on `folder` for display, {"host", "pid", "job", …, "age_s"}; None without a live one.

    An owner of another host or container counts as alive until its heartbeat is four periods old.
    """
    path = Path(folder) / "lease.json"
    try:
        owner, age_s = json.loads(path.read_text(encoding="utf-8")), time.time() - path.stat().st_mtime
    except (FileNotFoundError, json.JSONDecodeError):
        return None
    alive = _is_running(owner)
    if alive is None:
        alive = age_s < 4 * heartbeat.PERIOD_S
    return owner | {"age_s": age_s} if alive else None

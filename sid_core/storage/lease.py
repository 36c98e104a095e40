"""Hold a folder against a second writer."""

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
    """Hold `folder` against a second writer: after a kill of Snakemake its child lives on, and a restart starts another.

    The owner (host, place, pid, job id, heartbeat) stands in `folder`/lease.json. A dead owner of the same place holds nothing. One
    on another host or in another container is watched, for up to four periods of its heartbeat: killed with its node, or by a
    cluster that has already started the next job, it beats no more. An owner that stood still for so long, and finds another in
    its place, ends at once.

    Raises:
        UserError: a living owner holds the folder; the message names it.
    """
    path = Path(folder) / "lease.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    pid, job = os.getpid(), os.environ.get("SLURM_JOB_ID")
    owner = {"host": socket.gethostname(), "place": place(), "pid": pid, "start": process_start(pid), "job": job}
    payload = json.dumps(owner | {"token": uuid.uuid4().hex})
    watched = None
    while True:
        with _guard(path):
            watched = _refuse_living_owner(path, watched)
            if watched is None:
                write_text(path, payload)
                break
        time.sleep(heartbeat.PERIOD_S / 15)

    def beat() -> None:
        if path.read_text(encoding="utf-8") != payload:
            _end_at_once(f"{folder}: taken over while this process stood still")
        os.utime(path)

    try:
        with every(heartbeat.PERIOD_S, beat):
            yield
    finally:
        with _guard(path):
            if path.is_file() and path.read_text(encoding="utf-8") == payload:
                path.unlink()


def _end_at_once(why: str) -> None:
    """Nothing more is to be written, not even on the way out."""
    print(f"error: {why}; it ends here", file=sys.stderr, flush=True)
    os._exit(1)


@contextmanager
def _guard(path: Path) -> Iterator[None]:
    """Look at a lease and change it in one step: of two that find a dead owner, the second must find the first."""
    with open(path.with_name(".lease.guard"), "a") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)  # let go when the file is closed, also by a kill
        yield


Watched = tuple[str, int, float]  # a lease's text, its last beat, and since when both have been these


def _refuse_living_owner(path: Path, watched: Watched | None) -> Watched | None:
    """Refuse, or return what tells a sign of life at the next look; None when nobody holds the lease."""
    if not path.is_file():
        return None
    owner, beaten_ns, now_s = read_json(path), path.stat().st_mtime_ns, time.monotonic()
    if not isinstance(owner, dict) or not {"host", "pid", "start", "job"} <= owner.keys():
        raise UserError(f"{path}: none of this program's, so the folder is not used; give another folder")
    age_s, seen = time.time() - beaten_ns / 1e9, (path.read_text(encoding="utf-8"), beaten_ns)
    if _is_of_this_place(owner):
        alive = _is_running(owner)
    else:
        watched = watched or (*seen, now_s)
        alive = watched[:2] != seen
        # clocks of hosts may differ by minutes, hence by this one's alone
        if not alive and age_s < 240 * heartbeat.PERIOD_S and now_s - watched[2] < 4 * heartbeat.PERIOD_S:
            return watched
    if alive:
        job = f", Slurm job {owner['job']}" if owner["job"] else ""
        raise UserError(
            f"{path.parent}: in use by process {owner['pid']} on {owner['host']}{job} (last sign of life {age_s:.0f} s ago); "
            "wait for it or stop it, then run again"
        )
    return None


def _is_of_this_place(owner: dict) -> bool:
    return owner.get("place") == place() is not None


def _is_running(owner: dict) -> bool:
    return process_start(owner["pid"]) == owner["start"] is not None


def living_owner(folder: str | Path) -> dict | None:
    """Who holds the lease on `folder`, to be shown: {"host", "pid", "job", …, "age_s"}; None where nobody seems to.

    A look, not a claim: an owner on another host or in another container counts as alive until its heartbeat is four periods old.
    """
    path = Path(folder) / "lease.json"
    try:
        owner, age_s = json.loads(path.read_text(encoding="utf-8")), time.time() - path.stat().st_mtime
    except (FileNotFoundError, json.JSONDecodeError):
        return None
    alive = _is_running(owner) if _is_of_this_place(owner) else age_s < 4 * heartbeat.PERIOD_S
    return owner | {"age_s": age_s} if alive else None

"""Show other processes, also those of other machines, that this one lives."""

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

PERIOD_S = 15.0


def place() -> str | None:
    """Name the place where process numbers mean what they mean here: this boot of a machine, and the PID namespace. None where that is unknown.

    A host's name does not tell: containers share it and number their processes from 1 each.
    """
    with suppress(OSError):
        return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()} {os.readlink('/proc/self/ns/pid')}"
    return None


def process_start(pid: int) -> str | None:
    """Start time of a live process of this place (None when it is gone), so that a reused pid is not mistaken for it."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except (OSError, IndexError):
        return None
    return None if fields[0] == "Z" else fields[19]


@contextmanager
def every(period_s: float, beat: Callable[[], None]) -> Iterator[None]:
    """Call `beat` in the background; errors pass, since a file server may be away for a while."""
    stop = threading.Event()

    def run() -> None:
        while not stop.wait(period_s):
            with suppress(OSError):
                beat()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()

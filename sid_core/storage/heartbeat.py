"""Signal to other processes and machines that this process is alive."""

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

PERIOD_S = 15.0


def place() -> str | None:
    """Return an id of the scope of process numbers: this boot and PID namespace; None if unknown.

    A host's name is not enough: containers share it, and each numbers its processes from 1.
    """
    with suppress(OSError):
        return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()} {os.readlink('/proc/self/ns/pid')}"
    return None


def process_start(pid: int) -> str | None:
    """Return the start time of a live process of this place, which tells it from a reused pid; None if it has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except (OSError, IndexError):
        return None
    return None if fields[0] == "Z" else fields[19]


@contextmanager
def every(period_s: float, beat: Callable[[], None]) -> Iterator[None]:
    """Call `beat` in the background; ignore OSError, since a file server may be unavailable for a while."""
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

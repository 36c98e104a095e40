"""How far a stage is: a bar on a terminal, a line at every tenth in a log file."""

import sys
import time

from tqdm import tqdm

from ..storage import job_record


class Progress:
    """Shows images done of `total`. A bar's carriage returns would make one endless line of a log."""

    def __init__(self, total: int, what: str):
        self._total, self._what, self._done, self._tenth = total, what, 0, 0
        self._start_s = time.monotonic()
        self._bar = tqdm(total=total, desc=what, unit=" images") if sys.stderr.isatty() else None

    def update(self, done: int) -> None:
        """Show that `done` images are done, of all."""
        self._done = done
        if self._bar is not None:
            self._bar.update(done - self._bar.n)
            if self._done == self._total:
                self._bar.close()
        elif self._done * 10 // self._total > self._tenth:
            self._tenth = self._done * 10 // self._total
            elapsed_s = time.monotonic() - self._start_s
            speed = self._done / max(elapsed_s, 1e-9)
            print(
                f"{self._what}: {self._done} of {self._total} images, {speed:.0f} images/s", file=sys.stderr, flush=True
            )
            job_record.update(done=self._done, total=self._total, images_per_s=speed)

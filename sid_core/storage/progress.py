"""Show how much is done: a bar on a terminal, a line at every tenth in a log file."""

import logging
import sys
import time

from . import job_record

log = logging.getLogger(__name__)


class Progress:
    """Shows how many of `total` images, or bytes (`unit` B), are done. A bar's carriage returns would make one endless line of a log."""

    def __init__(self, name: str, total: int | None, unit: str = "images", done: int = 0):
        from tqdm import tqdm

        self._name, self._total, self._unit, self._start_s = name, total, unit, time.monotonic()
        self._tenth = 10 * done // total if total else 0
        terminal, scaled = sys.stderr.isatty(), unit == "B"
        self._bar = tqdm(desc=name, total=total, initial=done, unit=unit, unit_scale=scaled) if terminal else None

    def update(self, done: int) -> None:
        """Show that so many are done, of all."""
        if self._bar is not None:
            self._bar.update(done - self._bar.n)
            if done == self._total:
                self._bar.close()
        elif self._total and 10 * done // self._total > self._tenth:
            self._tenth = 10 * done // self._total
            if self._unit == "B":
                log.info("%s: %.1f of %.1f MB", self._name, done / 1e6, self._total / 1e6)
                return
            speed = done / max(time.monotonic() - self._start_s, 1e-9)
            log.info("%s: %d of %d images, %.0f images/s", self._name, done, self._total, speed)
            job_record.update(done=done, total=self._total, images_per_s=speed)

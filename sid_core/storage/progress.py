"""Show progress: a bar on a terminal, a line at every tenth in a log file."""

import logging
import sys
import time

from . import job_record

log = logging.getLogger(__name__)


class Progress:
    """Progress in images, or in bytes (`unit` B). A log gets lines: a bar's carriage returns would make one endless line."""

    def __init__(self, name: str, total: int | None, unit: str = "images", done: int = 0):
        from tqdm import tqdm

        self._name, self._total, self._unit, self._start_s = name, total, unit, time.monotonic()
        self._tenth = 10 * done // total if total else 0
        terminal, scaled = sys.stderr.isatty(), unit == "B"
        self._bar = tqdm(desc=name, total=total, initial=done, unit=unit, unit_scale=scaled) if terminal else None

    def update(self, done: int) -> None:
        """Show that `done` of all are done."""
        if self._bar is not None:
            self._bar.update(done - self._bar.n)
            if done == self._total:
                self._bar.close()
        elif self._total and 10 * done // self._total > self._tenth:
            self._tenth = 10 * done // self._total
            if self._unit == "B":
                log.info("%s: %.1f of %.1f MB", self._name, done / 1e6, self._total / 1e6)
                return
            throughput = done / max(time.monotonic() - self._start_s, 1e-9)
            log.info("%s: %d of %d %s, %.0f %s/s", self._name, done, self._total, self._unit, throughput, self._unit)
            job_record.update(done=done, total=self._total, images_per_s=throughput)

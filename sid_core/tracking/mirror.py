"""Mirror the log and the sample grids of a run to MLflow from a thread during the training."""

import logging
import threading
from pathlib import Path

from ..config import DistillSettings
from ..errors import UserError
from ..pipeline.paths import State
from ..storage.files import read_json
from .run import MirroredRun, generator_run
from .store import first_line, is_reachable

log = logging.getLogger(__name__)
PERIOD_S = 20.0  # between two syncs
GOODBYE_S = 10.0  # the last sync may delay the end of a job by this much; `track` uploads the rest


class Mirror:
    """A thread that mirrors one training log; the training neither waits for it nor fails with it."""

    def __init__(self, tracking: Path, settings: DistillSettings, state: Path):
        """Start the thread, which mirrors nothing until `init` has written the file `tracking`."""
        self.tracking, self.settings, self.state = Path(tracking), settings, State(Path(state))
        self.run: MirroredRun | None = None
        self._before = self._claimed()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._loop, daemon=True)
        self._ended_as = "RUNNING"

    def _claimed(self) -> int | None:
        """Return when a training last claimed the state folder, in ns, or None if none has."""
        path = self.state.identity
        return path.stat().st_mtime_ns if path.is_file() else None

    def __enter__(self) -> "Mirror":
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: object) -> None:
        self._ended_as = "FINISHED" if kind is None else "FAILED" if isinstance(error, UserError) else "KILLED"
        self._stop.set()
        self._thread.join(GOODBYE_S)

    def _loop(self) -> None:
        while not self._stop.wait(PERIOD_S):
            self._try_sync()
        if self.run is not None:
            self._try_sync()

    def _try_sync(self) -> None:
        try:
            self._sync()
        except Exception as error:
            log.debug("tracking: %s", first_line(error))

    def _sync(self) -> None:
        if not self.tracking.is_file():
            return
        store = read_json(self.tracking)
        if store["problem"] or not is_reachable(store):
            return
        if self.run is None:
            if self._before is not None and self._claimed() == self._before:
                return  # the log is of an earlier training, perhaps of other code
            self.run = generator_run(store, self.settings, None, self.state.identity)
        self.run.status(self._ended_as)
        self.run.points(self.state.training)
        self.run.grids(self.state.grids)

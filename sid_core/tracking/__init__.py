"""Mirror the files to MLflow, which only this package imports, and lazily, since it takes five seconds.

The files under results/ are the record. What is mirrored is read from them, so that losing MLflow loses nothing, syncing again
repeats nothing, and no number depends on tracking. An experiment's runs are flat (the UI folds nested ones away) and are
recognised by a digest of their settings: reruns and resumed jobs continue their run.
"""

from .mirror import Mirror
from .record import sync, track
from .store import attempt, init, resolve_uri

__all__ = ["Mirror", "attempt", "init", "resolve_uri", "sync", "track"]

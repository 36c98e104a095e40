"""Mirror the files under results/ to MLflow, which only this package imports, and lazily: the import takes five seconds.

The files are the record: losing MLflow loses nothing, syncing again repeats nothing, and no number depends on tracking. An
experiment's runs are flat (the UI folds nested ones away) and are identified by a digest of their settings: reruns and resumed
jobs continue their run.
"""

from .mirror import Mirror
from .record import sync, track
from .store import attempt, check, init, resolve_uri

__all__ = ["Mirror", "attempt", "check", "init", "resolve_uri", "sync", "track"]

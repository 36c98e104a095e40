"""Report the status of an experiment's jobs and the time left."""

from .text import show

__all__ = ["show"]

"""Versions of what touches images or numbers; they stand in every record. A module of its own: see `sources.stage_digest`."""

import platform
from importlib import metadata

LIBRARIES = (
    "torch",
    "numpy",
    "pillow",
    "diffusers",
    "transformers",
    "open_clip_torch",
    "clean-fid",
)


def versions() -> dict[str, str]:
    """Versions of Python and of the libraries that touch images or numbers."""
    return {"python": platform.python_version()} | {name: metadata.version(name) for name in LIBRARIES}

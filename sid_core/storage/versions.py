"""Record library versions. A module of its own: `stage_digest` follows imports."""

import platform
from importlib import metadata

LIBRARIES = ("torch", "numpy", "pillow", "diffusers", "transformers", "open_clip_torch", "clean-fid")


def versions() -> dict[str, str]:
    """Return the versions of Python and of the libraries that change images or numbers."""
    return {"python": platform.python_version()} | {name: metadata.version(name) for name in LIBRARIES}

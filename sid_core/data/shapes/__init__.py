"""Provide the embedded experiment: procedural scenes, their captions, and small networks trained on them."""

from pathlib import Path

# teacher/ and flow/ (diffusers directories), clip/ (an open_clip directory), features/, recipe.json; made by recipes/
ASSETS = Path(__file__).parent / "assets"


def asset(key: str) -> Path:
    """Return the folder of the embedded network for the key of a setting."""
    return ASSETS / {"feature_network": "features"}.get(key, key)


def teacher(source: str) -> Path:
    """Return the folder of the teacher for `teacher.source`: `embedded` or `embedded-flow`."""
    return ASSETS / {"embedded": "teacher", "embedded-flow": "flow"}[source]

"""The embedded experiment: procedurally drawn scenes, their captions, and small networks trained on them."""

from pathlib import Path

# teacher/ (a diffusers directory), clip/ (an open_clip directory), features/, recipe.json; made by `recipes`
ASSETS = Path(__file__).parent / "assets"


def asset(key: str) -> Path:
    """Return the folder of the network with a setting's key."""
    return ASSETS / {"feature_network": "features"}.get(key, key)

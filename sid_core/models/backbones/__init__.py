"""Register the families of teachers: one file and one entry of FAMILIES each."""

from pathlib import Path

from ...storage.files import read_json
from .base import Backbone
from .sd import StableDiffusion

FAMILIES: list[type[Backbone]] = [StableDiffusion]


def family_of_index(index: dict) -> type[Backbone]:
    """Find a family by `_class_name` of a model_index.json; by default the first, whose checks state what it expects."""
    return next((family for family in FAMILIES if index.get("_class_name") in family.PIPELINES), FAMILIES[0])


def family_of(folder: Path) -> type[Backbone]:
    """Find the family of a diffusers directory."""
    path = Path(folder) / "model_index.json"
    return family_of_index(read_json(path) if path.is_file() else {})


__all__ = ["FAMILIES", "Backbone", "StableDiffusion", "family_of", "family_of_index"]

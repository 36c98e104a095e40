"""Register the families of teachers: one file and one entry of FAMILIES each."""

from pathlib import Path

from ...errors import UserError
from ...storage.files import read_json
from .base import Backbone
from .flux import Flux
from .sana import Sana
from .sd import StableDiffusion
from .sd3 import StableDiffusion3
from .sdxl import StableDiffusionXL

FAMILIES: list[type[Backbone]] = [StableDiffusion, StableDiffusionXL, StableDiffusion3, Sana, Flux]


def family_of_index(index: dict, place: object) -> type[Backbone]:
    """Find a family by `_class_name` of the model_index.json at `place`; the first one where it states none.

    Raises:
        UserError: a pipeline of no family.
    """
    if (name := index.get("_class_name")) is None:
        return FAMILIES[0]
    families = {pipeline: family for family in FAMILIES for pipeline in family.PIPELINES}
    if name not in families:
        raise UserError(
            f"{place}: model_index.json: _class_name={name}: expected {' or '.join(families)}. Fix: give another teacher"
        )
    return families[name]


def family_of(folder: Path) -> type[Backbone]:
    """Find the family of a diffusers directory."""
    path = Path(folder) / "model_index.json"
    return family_of_index(read_json(path) if path.is_file() else {}, folder)


__all__ = [
    "FAMILIES",
    "Backbone",
    "StableDiffusion",
    "StableDiffusion3",
    "StableDiffusionXL",
    "family_of",
    "family_of_index",
]

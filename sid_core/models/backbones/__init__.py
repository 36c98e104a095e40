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
    """Find a family by `_class_name` of the model_index.json at `place`, or reject it; the first where it states none."""
    if (name := index.get("_class_name")) is None:
        return FAMILIES[0]
    families = {pipeline: family for family in FAMILIES for pipeline in family.PIPELINES}
    if name not in families:
        known = " or ".join(families)
        raise UserError(f"{place}: model_index.json: _class_name={name}: expected {known}. Fix: give another teacher")
    return families[name]


def family_of(folder: Path) -> type[Backbone]:
    """Find the family of a diffusers directory."""
    path = Path(folder) / "model_index.json"
    return family_of_index(read_json(path) if path.is_file() else {}, folder)


def expect_family(folder: Path, *supported: type[Backbone]) -> None:
    """Reject a teacher of another family, whose files a stage does not know."""
    if (family := family_of(folder)) not in supported:
        names = " or ".join(one.__name__ for one in supported)
        raise UserError(f"--teacher {folder}: expected a teacher of {names}, got {family.__name__}. Fix: give one")


__all__ = [
    "FAMILIES", "Backbone", "StableDiffusion", "StableDiffusion3", "StableDiffusionXL", "expect_family", "family_of",
    "family_of_index",
]  # fmt: skip

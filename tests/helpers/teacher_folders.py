"""Prepare, edit and read the folders of teachers."""

import json
from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor

from sid_core.config import Teacher
from sid_core.models.backbones import family_of
from sid_core.models.teacher import prepare_teacher
from sid_core.storage.files import read_json


def edit(path: Path, **changes) -> None:
    """Set entries of a JSON file."""
    path.write_text(json.dumps(read_json(path) | changes))


def prepare(source: Path, tmp_path: Path, **settings) -> Path:
    """Prepare a teacher in tmp_path/out, and check that no temporary files remain."""
    try:
        prepare_teacher(Teacher(source="local", path=str(source), **settings), tmp_path / "out")
    finally:
        assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".out")] == []
    return tmp_path / "out"


def weights_of(folder: Path) -> dict[str, Tensor]:
    """Return all weights of a prepared teacher, as COMPONENT.NAME."""
    return {
        f"{component}.{key}": tensor
        for component, stem in family_of(folder).WEIGHTS.items()
        for key, tensor in load_file(folder / component / f"{stem}.safetensors").items()
    }

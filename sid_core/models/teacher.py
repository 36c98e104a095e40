"""Prepare and load the teacher, a diffusers directory.

Its source is `embedded` (ships with the package), `local` (a directory) or `hub` (a repository). The prepared directory
has one layout for all, and its family (models/backbones) loads it.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from torch import nn

from ..data import shapes
from ..storage.files import atomic_path, digest, read_json, verify_manifest, write_json, write_manifest
from .backbones import Backbone, family_of
from .conditioning import Encoder
from .fetch import fetch_teacher

if TYPE_CHECKING:
    from ..config import Teacher


def prepare_teacher(settings: "Teacher", out: Path) -> None:
    """Check a teacher and copy it to `out`, with provenance.json and a manifest that every later stage verifies."""
    path = None
    if settings.source != "hub":
        path = shapes.teacher(settings.source) if settings.is_embedded else Path(settings.path).expanduser()
    place = f"teacher.repo={settings.repo}" if path is None else str(path)
    with atomic_path(out) as folder:
        folder.mkdir()
        provenance = fetch_teacher(settings, path, folder)
        provenance |= family_of(folder).check(folder, place)
        write_json(folder / "provenance.json", provenance)
        write_manifest(folder)


def teacher_sha256(folder: Path) -> str:
    """Return one hash of the teacher's weights and configs, after verifying them by the manifest."""
    verify_manifest(folder)
    return recorded_sha256(folder)


def recorded_sha256(folder: Path) -> str:
    """Return the same hash from the manifest alone, without reading gigabytes of weights."""
    files = read_json(Path(folder) / "manifest.json")["files"]
    return digest({name: entry["sha256"] for name, entry in files.items() if name != "provenance.json"})


def load_backbone(folder: Path) -> Backbone:
    """Load the teacher's network: float32, evaluation mode, no gradients for its weights."""
    return family_of(folder).load(Path(folder))


def load_text_encoder(folder: Path) -> Encoder:
    """Load the teacher's tokenizers and text encoders, frozen."""
    return family_of(folder).text_encoder(Path(folder))


def load_image_codec(folder: Path, at_once: int | None = None) -> nn.Module:
    """Load the teacher's autoencoder, frozen; it evaluates `at_once` images at a time to save memory (None: all)."""
    return family_of(folder).image_codec(Path(folder), at_once)


def latent_shape(folder: Path) -> tuple[int, int, int]:
    """Return (C, H, W) of the teacher's latents."""
    return family_of(folder).latent_shape(Path(folder))


def load_solver(name: str, folder: Path, steps: int):
    """Return the teacher's solver `name`, with its timesteps set."""
    return family_of(folder).solver(name, Path(folder), steps)

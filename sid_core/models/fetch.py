"""A teacher's files from a hub's repository: the five components and nothing beside them."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from .. import hub
from ..errors import UserError
from ..files import sha256_file

if TYPE_CHECKING:
    from ..config import Teacher

WEIGHTS = {
    "text_encoder": "model",
    "unet": "diffusion_pytorch_model",
    "vae": "diffusion_pytorch_model",
}
# beside the weights, where the repository has it
SMALL = {
    "tokenizer": (
        "tokenizer.json",
        "vocab.json",
        "merges.txt",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "added_tokens.json",
    ),
    "text_encoder": ("config.json",),
    "unet": ("config.json",),
    "vae": ("config.json",),
    "scheduler": ("scheduler_config.json",),
}


def fetch_teacher(settings: "Teacher", folder: Path) -> dict:
    """Fetch the five components from the hub into `folder`; return what is known of them.

    Weights are hard links into the hub's cache where the file system allows: 4 GB are not there twice.

    Raises:
        UserError: a component has no safetensors, or a file another sha256 than the settings say.
    """
    repository = hub.find(settings.repo, settings.revision, ("teacher.repo", "teacher.revision"))
    expected, files = dict(settings.sha256 or {}), {}
    for name, plain in _wanted(repository, settings.variant):
        path = repository.fetch(name).resolve()
        found = sha256_file(path)
        if expected.pop(name, found) != found:
            raise UserError(
                f"teacher.sha256: {name} of {settings.repo} has {found}, expected {settings.sha256[name]}; "
                "correct the hash, or the revision"
            )
        _bring(path, folder / plain)
        files[name] = {"sha256": found, "bytes": path.stat().st_size}
    if expected:
        raise UserError(f"teacher.sha256: {', '.join(expected)}: not among what is fetched ({', '.join(files)})")
    return {
        "source": "hub",
        "repo": repository.name,
        "revision": repository.commit,
        "asked_for": settings.revision,
        "variant": settings.variant,
        "license": repository.license(),
        "files": files,
    }


def _wanted(repository: hub.Repository, variant: str | None) -> Iterator[tuple[str, str]]:
    """Names of the files to fetch, there and here: the weights of a variant take the plain name."""
    if "model_index.json" in repository.files:
        yield "model_index.json", "model_index.json"
    for component, files in SMALL.items():
        for name in (f"{component}/{file}" for file in files):
            if name in repository.files:
                yield name, name
    for component, stem in WEIGHTS.items():
        name = f"{component}/{stem}.{variant}.safetensors" if variant else f"{component}/{stem}.safetensors"
        if name not in repository.files:
            raise UserError(_missing(repository, component, name, variant))
        yield name, f"{component}/{stem}.safetensors"


def _missing(repository: hub.Repository, component: str, name: str, variant: str | None) -> str:
    """Why weights cannot be fetched, and what to do."""
    place = f"teacher.repo={repository.name}"
    if not repository.answered:
        return f"{place}: {name} is not in the cache and the hub does not answer; connect, or unset HF_HUB_OFFLINE"
    there = sorted(file for file in repository.files if file.startswith(f"{component}/"))
    if any(file.endswith(".safetensors") for file in there):
        remedy = "teacher.variant to null" if variant else "teacher.variant to fp16"
        return f"{place}: has no {name} (but {', '.join(there)}); set {remedy} if that fits, or use another repository"
    if any(file.endswith((".bin", ".ckpt")) for file in there):
        return (
            f"{place}: has no {name}, only pickled weights ({', '.join(there)}), which may hold code and are not read; "
            "give a repository or revision with safetensors, or convert them and use source: local"
        )
    return f"{place}: has no {name}; expected a diffusers repository with {', '.join(SMALL)}"


def _bring(path: Path, target: Path) -> None:
    target.parent.mkdir(exist_ok=True)
    if target.suffix == ".safetensors":  # the rest is small, and a copy may be edited without harm to the cache
        try:
            os.link(path, target)
            return
        except OSError:
            pass  # another file system, or one without links
    shutil.copy(path, target)

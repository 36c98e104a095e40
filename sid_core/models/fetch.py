"""Fetch a teacher's files from a diffusers directory or a hub: the components of its family alone, under plain names."""

import logging
import os
import shlex
import shutil
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from ..errors import UserError
from ..storage import hub
from ..storage.files import read_json, sha256_file
from .backbones import Backbone, family_of_index

if TYPE_CHECKING:
    from ..config import Teacher

log = logging.getLogger(__name__)
INDEX = "model_index.json"


@dataclass(frozen=True)
class Folder:
    """A diffusers directory on disk, with the interface of a repository."""

    path: Path
    files: frozenset[str]

    @classmethod
    def from_directory(cls, path: Path) -> "Folder":
        """List the files of a directory, or raise UserError where there is none."""
        if not path.is_dir():
            raise UserError(f"teacher.path={path}: no such folder; expected a diffusers directory")
        found = (file for pattern in ("*", "*/*") for file in path.glob(pattern) if file.is_file())
        return cls(path, frozenset(file.relative_to(path).as_posix() for file in found))

    def fetch(self, file: str) -> Path:
        """Return the path of a file."""
        return self.path / file


Source = Folder | hub.Repository


def fetch_teacher(settings: "Teacher", path: Path | None, folder: Path) -> dict:
    """Fetch the components of the teacher's family into `folder`, shards joined, and return their provenance.

    Without `path` the source is the hub's repository of the settings. Its weights are hard links into the cache where the
    file system allows, which saves 4 GB.
    """
    if path is None:
        source = hub.find(settings.repo, settings.revision, ("teacher.repo", "teacher.revision"))
        place = f"teacher.repo={source.name}"
    else:
        source, place = Folder.from_directory(path), f"teacher.path={path}"
    index = read_json(source.fetch(INDEX)) if INDEX in source.files else {}
    family = _find_family(source, index, place)
    family.check_files(source.files, place)
    absent = family.absent(source.files, index)
    if absent:
        log.info("%s: no %s, which %s does not need", place, ", ".join(sorted(absent)), family.__name__)
    paths = {name: source.fetch(name).resolve() for name in _config_files(source, family, absent, place)}
    for name, file in paths.items():
        _copy(file, folder / name)
    family.check_configs(folder, place)  # before gigabytes are fetched
    weights = {
        component: _weight_files(source, family, component, settings.variant, place)
        for component in family.WEIGHTS
        if component not in absent
    }
    paths |= {name: source.fetch(name).resolve() for names in weights.values() for name in names}
    files = _identified(settings, paths) if path is None else {}
    for component, names in weights.items():
        target = folder / component / f"{family.WEIGHTS[component]}.safetensors"
        if len(names) > 1:
            _join([paths[name] for name in names], target, place)
        else:
            _copy(paths[names[0]], target, link=path is None)
    provenance = {"source": settings.source, "variant": settings.variant, "weights": weights}
    if path is not None:
        return provenance | {"path": settings.path}
    pinned = {"repo": source.name, "revision": source.commit, "asked_for": settings.revision}
    return provenance | pinned | {"license": source.license(), "files": files}


def _identified(settings: "Teacher", paths: dict[str, Path]) -> dict[str, dict]:
    """Return hash and size of each fetched file, compared with `teacher.sha256`."""
    expected, files = settings.sha256 or {}, {}
    for name, path in paths.items():
        found = sha256_file(path)
        if expected.get(name, found) != found:
            raise UserError(
                f"teacher.sha256: {name} of {settings.repo} has {found}, expected {expected[name]}. "
                "Fix: correct the hash, or the revision"
            )
        files[name] = {"sha256": found, "bytes": path.stat().st_size}
    if unknown := [name for name in expected if name not in files]:
        raise UserError(f"teacher.sha256: {', '.join(unknown)}: not among the fetched files ({', '.join(files)})")
    return files


def _find_family(source: Source, index: dict, place: str) -> type[Backbone]:
    """Find the family by model_index.json; raises UserError for a pipeline of no family, or a single component."""
    alone = "config.json"
    if INDEX not in source.files and alone in source.files:
        kind = read_json(source.fetch(alone)).get("_class_name") or "model"
        raise UserError(
            f"{place}: holds one component, a {kind}: expected a pipeline with {INDEX}. Fix: give the whole model it belongs to"
        )
    return family_of_index(index, place)


def _config_files(source: Source, family: type[Backbone], absent: Collection[str], place: str) -> list[str]:
    """Return the names of all files but weights, of the components that the teacher has."""
    for component, alternatives in family.NEEDED.items():
        names = [f"{component}/{file}" for file in alternatives]
        if component not in absent and not source.files.intersection(names):
            remedy = _offline(source) or ". Fix: give a teacher with all its folders"
            raise UserError(f"{place}: component {component} is missing: {' or '.join(names)}{remedy}")
    configs = [(component, files) for component, files in family.CONFIGS.items() if component not in absent]
    wanted = [f"{component}/{file}" for component, files in configs for file in files]
    return [name for name in (INDEX, *wanted) if name in source.files]


def _weight_files(source: Source, family: type[Backbone], component: str, variant: str | None, place: str) -> list[str]:
    """Return the names of a component's safetensors: one file, or shards; fp16 where there is no other variant."""
    stem = f"{component}/{family.WEIGHTS[component]}"
    for kind in [variant] if variant else ["", "fp16"]:
        dot = f".{kind}" if kind else ""
        single, index = f"{stem}{dot}.safetensors", f"{stem}.safetensors.index{dot}.json"
        names = [single] if single in source.files else _shards(source, index, place) if index in source.files else []
        if names and kind and not variant:
            log.info("%s: %s: the variant fp16 is the only one, so its weights have 16 bits", place, component)
        if names:
            return names
    name = f"{stem}.{variant}.safetensors" if variant else f"{stem}.safetensors"
    raise UserError(_missing(source, family, name, variant, place))


def _shards(source: Source, index: str, place: str) -> list[str]:
    """Return the names of the files that an index of shards lists."""
    table = read_json(source.fetch(index)).get("weight_map")
    if not isinstance(table, dict) or not table:
        raise UserError(f"{place}: {index}: expected a weight_map, got none. Fix: get the file again")
    names = sorted({f"{index.split('/')[0]}/{shard}" for shard in table.values()})
    if missing := [name for name in names if name not in source.files]:
        raise UserError(f"{place}: {index}: lists {', '.join(missing)}, which is missing. Fix: get all shards")
    return names


def _join(paths: list[Path], target: Path, place: str) -> None:
    """Write the tensors of all shards to one file, each in its own dtype."""
    weights = {}
    for path in paths:
        try:
            weights |= load_file(path)
        except SafetensorError as error:
            raise UserError(f"{place}: {path.name}: cannot be read ({error}). Fix: get the file again") from None
    save_file(weights, target, metadata={"format": "pt"})


def _missing(source: Source, family: type[Backbone], name: str, variant: str | None, place: str) -> str:
    """Return the message of weights that cannot be fetched, with the remedy."""
    if offline := _offline(source):
        return f"{place}: {name}{offline}"
    there = sorted(file for file in source.files if file.startswith(f"{name.split('/')[0]}/"))
    if any(file.endswith(".safetensors") for file in there):
        remedy = "set teacher.variant to null, or " if variant else ""
        return f"{place}: has no {name} (but {', '.join(there)}). Fix: {remedy}use another teacher"
    if any(file.endswith((".bin", ".ckpt")) for file in there):
        return (
            f"{place}: has no {name}, only pickled weights ({', '.join(there)}), which may contain code. "
            f"Fix: if you trust them, run {_conversion(source, family.PIPELINES[0])} and set teacher: {{source: local, path: converted}}"
        )
    return f"{place}: has no {name}; expected a diffusers repository, with model_index.json"


def _conversion(source: Source, pipeline: str) -> str:
    """Return the command that converts pickled weights to safetensors with diffusers."""
    local = isinstance(source, Folder)
    origin = repr(str(source.path)) if local else f"{source.name!r}, revision={source.commit!r}"
    code = (
        f"from diffusers import {pipeline} as P; P.from_pretrained({origin}, use_safetensors=False, "
        "safety_checker=None).save_pretrained('converted')"
    )
    return f"python -c {shlex.quote(code)}"


def _offline(source: Source) -> str:
    if isinstance(source, hub.Repository) and not source.answered:
        return " is not in the cache and the hub does not answer; connect, or unset HF_HUB_OFFLINE"
    return ""


def _copy(path: Path, target: Path, link: bool = False) -> None:
    """Copy a file, or make a hard link where `link` is set and the file system allows."""
    target.parent.mkdir(exist_ok=True)
    if link:
        with suppress(OSError):  # another file system, or one without links
            os.link(path, target)
            return
    shutil.copyfile(path, target)

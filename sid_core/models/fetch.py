"""Bring a teacher's files from a folder or a hub's repository: its family's components under plain names, and nothing beside."""

import logging
import os
import shlex
import shutil
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


@dataclass(frozen=True)
class Folder:
    """A diffusers directory on disk, read like a repository."""

    path: Path
    files: frozenset[str]

    @classmethod
    def of(cls, path: Path) -> "Folder":
        """List a directory.

        Raises:
            UserError: there is none.
        """
        if not path.is_dir():
            raise UserError(
                f"teacher.path={path}: no such folder; expected a diffusers directory, with model_index.json"
            )
        found = (file for pattern in ("*", "*/*") for file in path.glob(pattern) if file.is_file())
        return cls(path, frozenset(file.relative_to(path).as_posix() for file in found))

    def fetch(self, file: str) -> Path:
        """Path of a file."""
        return self.path / file


Source = Folder | hub.Repository


def fetch_teacher(settings: "Teacher", path: Path | None, folder: Path) -> dict:
    """Bring the components of the teacher's family into `folder`; return what is known of them.

    Weights of a hub are hard links into its cache where the file system allows: 4 GB are not there twice. Shards are joined.

    Args:
        path: the directory; None: the hub's repository that settings name.

    Raises:
        UserError: another kind of model, a component without safetensors, or a file of another sha256 than the settings say.
    """
    if path is None:
        source = hub.find(settings.repo, settings.revision, ("teacher.repo", "teacher.revision"))
        place = f"teacher.repo={source.name}"
    else:
        source, place = Folder.of(path), f"teacher.path={path}"
    index = "model_index.json"
    family = family_of_index(read_json(source.fetch(index)) if index in source.files else {})
    family.check_files(source.files, place)
    small = _small_files(source, family, place)
    paths = {name: source.fetch(name).resolve() for name in small}
    for name in small:
        _bring(paths[name], folder / name)
    family.check_configs(folder, place)  # before gigabytes are fetched
    weights = {
        component: _weight_files(source, component, stem, settings.variant, place)
        for component, stem in family.WEIGHTS.items()
    }
    paths |= {name: source.fetch(name).resolve() for names in weights.values() for name in names}
    files = _identified(settings, paths) if path is None else {}
    for component, names in weights.items():
        target = folder / component / f"{family.WEIGHTS[component]}.safetensors"
        if len(names) > 1:
            _join([paths[name] for name in names], target, place)
        else:
            _bring(paths[names[0]], target, link=path is None)
    known = {"source": settings.source, "variant": settings.variant, "weights": weights}
    if path is not None:
        return known | {"path": settings.path}
    return known | {
        "repo": source.name,
        "revision": source.commit,
        "asked_for": settings.revision,
        "license": source.license(),
        "files": files,
    }


def _identified(settings: "Teacher", paths: dict[str, Path]) -> dict[str, dict]:
    """Hash and size of each fetched file, after comparing with the hashes that settings ask for."""
    expected, files = settings.sha256 or {}, {}
    for name, path in paths.items():
        found = sha256_file(path)
        if expected.get(name, found) != found:
            raise UserError(
                f"teacher.sha256: {name} of {settings.repo} has {found}, expected {expected[name]}; "
                "correct the hash, or the revision"
            )
        files[name] = {"sha256": found, "bytes": path.stat().st_size}
    if unknown := [name for name in expected if name not in files]:
        raise UserError(f"teacher.sha256: {', '.join(unknown)}: not among what is fetched ({', '.join(files)})")
    return files


def _small_files(source: Source, family: type[Backbone], place: str) -> list[str]:
    """Names of all that is no weights."""
    for component, alternatives in family.NEEDED.items():
        names = [f"{component}/{file}" for file in alternatives]
        if not source.files.intersection(names):
            raise UserError(f"{place}: component {component} is missing ({' or '.join(names)}{_offline(source)})")
    wanted = [
        "model_index.json",
        *(f"{component}/{file}" for component, files in family.CONFIGS.items() for file in files),
    ]
    return [name for name in wanted if name in source.files]


def _weight_files(source: Source, component: str, stem: str, variant: str | None, place: str) -> list[str]:
    """Names of the safetensors that hold a component's weights: one, or shards; of fp16 where there is nothing else."""
    stem = f"{component}/{stem}"
    for kind in [variant] if variant else ["", "fp16"]:
        dot = f".{kind}" if kind else ""
        single, index = f"{stem}{dot}.safetensors", f"{stem}.safetensors.index{dot}.json"
        names = [single] if single in source.files else _shards(source, index, place) if index in source.files else []
        if names and kind and not variant:
            log.info("%s: %s: only the variant fp16 is there, so its weights are of 16 bits", place, component)
        if names:
            return names
    raise UserError(
        _missing(source, component, f"{stem}{f'.{variant}' if variant else ''}.safetensors", variant, place)
    )


def _shards(source: Source, index: str, place: str) -> list[str]:
    """Names of the files that an index of shards lists."""
    table = read_json(source.fetch(index)).get("weight_map")
    if not isinstance(table, dict) or not table:
        raise UserError(f"{place}: {index}: has no weight_map; expected an index of shards. Fix: get the file again")
    names = sorted({f"{index.split('/')[0]}/{shard}" for shard in table.values()})
    if missing := [name for name in names if name not in source.files]:
        raise UserError(f"{place}: {index}: lists {', '.join(missing)}, which is missing. Fix: get all shards")
    return names


def _join(paths: list[Path], target: Path, place: str) -> None:
    """Write the tensors of all shards to one file, each in its own type."""
    weights = {}
    for path in paths:
        try:
            weights |= load_file(path)
        except SafetensorError as error:
            raise UserError(f"{place}: {path.name}: cannot be read ({error}). Fix: get the file again") from None
    save_file(weights, target, metadata={"format": "pt"})


def _missing(source: Source, component: str, name: str, variant: str | None, place: str) -> str:
    """Why weights cannot be brought, and what to do."""
    if offline := _offline(source):
        return f"{place}: {name}{offline}"
    there = sorted(file for file in source.files if file.startswith(f"{component}/"))
    if any(file.endswith(".safetensors") for file in there):
        remedy = "set teacher.variant to null, or " if variant else ""
        return f"{place}: has no {name} (but {', '.join(there)}). Fix: {remedy}use another teacher"
    if any(file.endswith((".bin", ".ckpt")) for file in there):
        return (
            f"{place}: has no {name}, only pickled weights ({', '.join(there)}), which may hold code and are not read. "
            f"Fix: where you trust them, run {_conversion(source)} and set teacher: {{source: local, path: converted}}"
        )
    return f"{place}: has no {name}; expected a diffusers repository, with model_index.json"


def _conversion(source: Source) -> str:
    """The command that writes pickled weights as safetensors, by diffusers."""
    if isinstance(source, Folder):
        which = repr(str(source.path))
    else:
        which = f"{source.name!r}, revision={source.commit!r}"
    code = (
        f"from diffusers import StableDiffusionPipeline as P; P.from_pretrained({which}, use_safetensors=False, "
        "safety_checker=None).save_pretrained('converted')"
    )
    return f"python -c {shlex.quote(code)}"


def _offline(source: Source) -> str:
    if isinstance(source, hub.Repository) and not source.answered:
        return " is not in the cache and the hub does not answer; connect, or unset HF_HUB_OFFLINE"
    return ""


def _bring(path: Path, target: Path, link: bool = False) -> None:
    """A copy, or a hard link where that can be."""
    target.parent.mkdir(exist_ok=True)
    if link:
        try:
            os.link(path, target)
            return
        except OSError:
            pass  # another file system, or one without links
    shutil.copyfile(path, target)

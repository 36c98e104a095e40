"""Make the shipped weights from nothing: every recipe step in order, measured and recorded."""

import platform
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

from sid_core.errors import UserError
from sid_core.storage.files import atomic_path, check_place, digest, read_json, sha256_file, write_json

from .autoencoder import train_autoencoder
from .clip import train_clip
from .features import train_features
from .flow import train_flow
from .quality import measure, measure_flow
from .settings import RecipeSettings
from .teacher import train_teacher

RECIPE = "recipe.json"
LIBRARIES = ("torch", "diffusers", "transformers", "tokenizers", "open_clip_torch", "safetensors", "numpy")


@dataclass(frozen=True)
class RecipeStep:
    """A step of the recipe: folders that it writes, steps that it depends on, and make(settings, seed, folder)."""

    writes: tuple[str, ...]
    needs: tuple[str, ...]
    make: Callable[..., dict | None]


RECIPE_STEPS = {  # by name of the block of RecipeSettings
    "autoencoder": RecipeStep(("teacher/vae",), (), train_autoencoder),
    "clip": RecipeStep(("clip", "teacher/tokenizer", "teacher/text_encoder"), (), train_clip),
    "features": RecipeStep(("features",), (), train_features),
    "teacher": RecipeStep(("teacher/unet", "teacher/scheduler"), ("autoencoder", "clip"), train_teacher),
    "flow": RecipeStep(("flow",), ("autoencoder", "clip"), train_flow),
    "quality": RecipeStep((), ("autoencoder", "clip", "features", "teacher"), measure),
    "flow_quality": RecipeStep((), ("features", "flow"), measure_flow),
}


def make_assets(out: Path, settings: RecipeSettings, only: set[str] | None = None) -> None:
    """Run every recipe step and assemble `out`: teacher/, flow/, clip/, features/, recipe.json.

    Finished steps are stored in OUT.work until none is missing, so an interrupted call resumes at its step. A non-empty `only`
    restricts the call to these steps.

    Raises:
        UserError: `only` names an unknown step, or one whose needs are not made yet; OUT.work holds other files.
    """
    unknown = (only or set()) - set(RECIPE_STEPS)
    if unknown:
        raise UserError(f"--only {' '.join(sorted(unknown))}: expected some of {', '.join(RECIPE_STEPS)}")
    out = Path(out)
    check_place(out, RECIPE)
    if (out / RECIPE).is_file() and read_json(out / RECIPE)["digest"] == recipe_digest(settings):
        print(f"{out}: made by this recipe already")
        return
    work = out.with_name(out.name + ".work")
    _check_owner(work)
    work.mkdir(parents=True, exist_ok=True)
    for name in RECIPE_STEPS:
        if not only or name in only:
            _make_step(name, settings, work)
    if all(_is_made(name, settings, work) for name in RECIPE_STEPS):
        _assemble(settings, work, out)
        shutil.rmtree(work)
        print(f"{out}: finished")


def recipe_digest(settings: RecipeSettings) -> str:
    """Hash everything that the assets depend on."""
    return digest([step_digest(name, settings) for name in ("quality", "flow_quality")])


def step_digest(name: str, settings: RecipeSettings) -> str:
    """Hash everything that a step's result depends on: its settings, the seed, and the digests of its needs."""
    needed = [step_digest(need, settings) for need in RECIPE_STEPS[name].needs]
    return digest([name, asdict(getattr(settings, name)), settings.seed, needed])


def _make_step(name: str, settings: RecipeSettings, work: Path) -> None:
    if _is_made(name, settings, work):
        return
    step = RECIPE_STEPS[name]
    missing = [need for need in step.needs if not _is_made(need, settings, work)]
    if missing:
        raise UserError(f"--only {name}: expected {', '.join(missing)} first. Fix: add {' '.join(missing)}.")
    _stamp(name, work).unlink(missing_ok=True)
    for written in step.writes:
        shutil.rmtree(work / written, ignore_errors=True)
    started_s = time.monotonic()
    result = step.make(getattr(settings, name), settings.seed, work)
    record = {"digest": step_digest(name, settings), "seconds": round(time.monotonic() - started_s), "result": result}
    write_json(_stamp(name, work), record)


def _check_owner(work: Path) -> None:
    """Reject a work folder that holds anything but recipe steps: it is removed in the end."""
    own = {written.split("/")[0] for step in RECIPE_STEPS.values() for written in step.writes}
    own |= {_stamp(name, work).name for name in RECIPE_STEPS}
    for path in work.iterdir() if work.is_dir() else ():
        if path.name not in own and not path.name.startswith(tuple(f".{name}." for name in own)):
            raise UserError(f"{path}: not created by sid-core. Fix: move it out of {work}, or change --out.")


def _stamp(name: str, work: Path) -> Path:
    return work / f"{name}.made.json"


def _is_made(name: str, settings: RecipeSettings, work: Path) -> bool:
    path = _stamp(name, work)
    return path.is_file() and read_json(path)["digest"] == step_digest(name, settings)


def _assemble(settings: RecipeSettings, work: Path, out: Path) -> None:
    stamps = {name: read_json(_stamp(name, work)) for name in RECIPE_STEPS}
    with atomic_path(out, RECIPE) as folder:
        folder.mkdir()
        for name in ("teacher", "flow", "clip", "features"):
            shutil.copytree(work / name, folder / name)
        files = {
            path.relative_to(folder).as_posix(): {"sha256": sha256_file(path), "bytes": path.stat().st_size}
            for path in sorted(folder.rglob("*"))
            if path.is_file()
        }
        record = {
            "digest": recipe_digest(settings),
            "settings": asdict(settings),
            "quality": stamps["quality"]["result"] | stamps["flow_quality"]["result"],
            "seconds": {name: stamp["seconds"] for name, stamp in stamps.items()},
            "versions": {name: version(name) for name in LIBRARIES} | {"python": platform.python_version()},
            "files": files,
        }
        write_json(folder / RECIPE, record)

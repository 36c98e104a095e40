"""From nothing to the shipped weights: every part in its order, measured, with a record of how it was made."""

import platform
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

from ..errors import UserError
from ..storage.files import atomic_path, check_place, digest, read_json, sha256_file, write_json
from .settings import RecipeSettings

RECIPE = "recipe.json"
LIBRARIES = ("torch", "diffusers", "transformers", "tokenizers", "open_clip_torch", "safetensors", "numpy")


@dataclass(frozen=True)
class Part:
    """One step of the recipe: what it writes below the output folder, what it stands on, its settings, and how it is made."""

    writes: tuple[str, ...]
    needs: tuple[str, ...]
    settings: Callable[[RecipeSettings], object]
    make: Callable[[RecipeSettings, Path], dict | None]


def make_assets(out: Path, settings: RecipeSettings, only: set[str] | None = None) -> None:
    """Train every part and put them together at `out`: teacher/, clip/, features/, recipe.json.

    Parts are kept beside `out` (OUT.work) until all are there, so an interrupted call goes on with the part it was at. With
    `only`, just these parts are made; `out` appears as soon as none is missing.

    Raises:
        UserError: `only` names an unknown part, or one whose needs are not made yet.
    """
    unknown = (only or set()) - set(PARTS)
    if unknown:
        raise UserError(f"unknown part {', '.join(sorted(unknown))}: expected some of {', '.join(PARTS)}")
    out = Path(out)
    check_place(out, RECIPE)
    if _finished(out, settings):
        print(f"{out}: made by this recipe already")
        return
    work = out.with_name(out.name + ".work")
    _refuse_foreign(work)
    work.mkdir(parents=True, exist_ok=True)
    for name in PARTS:
        if only is None or name in only:
            _make_part(name, settings, work)
    if all(_is_made(name, settings, work) for name in PARTS):
        _assemble(settings, work, out)
        shutil.rmtree(work)
        print(f"{out}: finished")


def part_digest(name: str, settings: RecipeSettings) -> str:
    """What a part's result depends on: its settings, the seed, and the same of the parts it stands on."""
    part = PARTS[name]
    needed = [part_digest(need, settings) for need in part.needs]
    return digest([name, asdict(part.settings(settings)), settings.seed, needed])


def _make_part(name: str, settings: RecipeSettings, work: Path) -> None:
    if _is_made(name, settings, work):
        return
    part = PARTS[name]
    missing = [need for need in part.needs if not _is_made(need, settings, work)]
    if missing:
        raise UserError(f"part {name} stands on {', '.join(missing)}, not made yet; name it too")
    _stamp(name, work).unlink(missing_ok=True)
    for written in part.writes:
        shutil.rmtree(work / written, ignore_errors=True)
    started_s = time.monotonic()
    result = part.make(settings, work)
    record = {"digest": part_digest(name, settings), "seconds": round(time.monotonic() - started_s), "result": result}
    write_json(_stamp(name, work), record)


def _refuse_foreign(work: Path) -> None:
    """Refuse a folder of parts in which anything but parts lies: it is removed in the end."""
    own = {written.split("/")[0] for part in PARTS.values() for written in part.writes}
    own |= {_stamp(name, work).name for name in PARTS}
    for path in work.iterdir() if work.is_dir() else ():
        if path.name not in own and not path.name.startswith(tuple(f".{name}." for name in own)):
            raise UserError(
                f"{path}: none of this program's; parts are kept in {work}. Fix: move it, or give another --out"
            )


def _stamp(name: str, work: Path) -> Path:
    return work / f"{name}.made.json"


def _is_made(name: str, settings: RecipeSettings, work: Path) -> bool:
    path = _stamp(name, work)
    return path.is_file() and read_json(path)["digest"] == part_digest(name, settings)


def _finished(out: Path, settings: RecipeSettings) -> bool:
    return (out / RECIPE).is_file() and read_json(out / RECIPE)["digest"] == part_digest("quality", settings)


def _assemble(settings: RecipeSettings, work: Path, out: Path) -> None:
    stamps = {name: read_json(_stamp(name, work)) for name in PARTS}
    with atomic_path(out, RECIPE) as folder:
        folder.mkdir()
        for name in ("teacher", "clip", "features"):
            shutil.copytree(work / name, folder / name)
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        write_json(
            folder / RECIPE,
            {
                "digest": part_digest("quality", settings),
                "settings": asdict(settings),
                "quality": stamps["quality"]["result"],
                "seconds": {name: stamp["seconds"] for name, stamp in stamps.items()},
                "versions": {name: version(name) for name in LIBRARIES} | {"python": platform.python_version()},
                "files": {
                    path.relative_to(folder).as_posix(): {"sha256": sha256_file(path), "bytes": path.stat().st_size}
                    for path in files
                },
            },
        )


def _autoencoder(settings: RecipeSettings, work: Path) -> None:
    from .autoencoder import train_autoencoder

    train_autoencoder(settings.autoencoder, settings.seed, work / "teacher" / "vae")


def _clip(settings: RecipeSettings, work: Path) -> None:
    from .clip import train_clip

    train_clip(settings.clip, settings.seed, work / "clip", work / "teacher")


def _features(settings: RecipeSettings, work: Path) -> None:
    from .features import train_features

    train_features(settings.features, settings.seed, work / "features")


def _teacher(settings: RecipeSettings, work: Path) -> None:
    from .teacher import train_teacher

    train_teacher(settings.teacher, settings.seed, work / "teacher")


def _quality(settings: RecipeSettings, work: Path) -> dict:
    from .quality import measure

    return measure(settings.quality, settings.seed, work)


PARTS = {
    "autoencoder": Part(("teacher/vae",), (), lambda s: s.autoencoder, _autoencoder),
    "clip": Part(("clip", "teacher/tokenizer", "teacher/text_encoder"), (), lambda s: s.clip, _clip),
    "features": Part(("features",), (), lambda s: s.features, _features),
    "teacher": Part(("teacher/unet", "teacher/scheduler"), ("autoencoder", "clip"), lambda s: s.teacher, _teacher),
    "quality": Part((), ("autoencoder", "clip", "features", "teacher"), lambda s: s.quality, _quality),
}

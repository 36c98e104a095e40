"""Save and load a distilled generator: its network, or its adapters, in the layout of diffusers, and generator.json."""

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors.torch import save_file
from torch import Tensor

from ..errors import UserError
from ..method import Steps
from ..pipeline.paths import Results, Row
from ..storage.files import MANIFEST, atomic_path, read_json, sha256_file, verify_manifest, write_json, write_manifest
from .backbones import Backbone, family_of
from .lora import FILE, MARK, merge
from .teacher import recorded_sha256

if TYPE_CHECKING:
    from ..config import ResampleSettings


def save_generator(out: Path, backbone: Backbone, weights: dict[str, Tensor], record: dict) -> None:
    """Write `out` atomically: the network's config, `weights` (the EMA), `record` as generator.json, a manifest.

    Weights of adapters alone are a LoRA file, which diffusers and peft read. `record` needs the `t_init` and `num_steps` of
    sampling, and the `teacher_sha256` of its teacher.
    """
    with atomic_path(out, "generator.json") as folder:
        network = folder / backbone.NETWORK
        network.mkdir(parents=True)
        backbone.save_config(network)
        path = network / f"{backbone.WEIGHTS[backbone.NETWORK]}.safetensors"
        if all(MARK in name for name in weights):
            path, weights = network / FILE, {f"{backbone.NETWORK}.{name}": tensor for name, tensor in weights.items()}
        save_file({name: tensor.contiguous() for name, tensor in weights.items()}, path, metadata={"format": "pt"})
        write_json(folder / "generator.json", record)
        write_manifest(folder)


def resample(settings: "ResampleSettings", generator: Path, out: Path) -> None:
    """Write `generator` to `out` as one of fewer evaluations, for which it was trained; its weights may be links."""
    verify_manifest(generator)
    record, run = read_json(generator / "generator.json"), settings.run
    if record["run"].get("steps_objective") != "mixture" or record["num_steps"] % run.num_steps:
        raise UserError(
            f"{generator}: num_steps={record['num_steps']}, steps_objective={record['run'].get('steps_objective')}: expected "
            f"a mixture of a multiple of {run.num_steps} steps. Fix: distil it with steps_objective: mixture"
        )
    with atomic_path(out, "generator.json") as folder:
        replaced = shutil.ignore_patterns("generator.json", MANIFEST)
        shutil.copytree(generator, folder, copy_function=_link, ignore=replaced)
        write_json(folder / "generator.json", record | {"run": run.model_dump(), "num_steps": run.num_steps})
        write_manifest(folder)


def _link(source: str, target: str) -> None:
    """Link a file, which is replaced and never written to, or copy it."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def recorded_steps(record: dict) -> Steps:
    """Return the network evaluations of a generator by its generator.json."""
    return Steps(record["t_init"], record["num_steps"], record.get("step_noise", "fresh"))


def load_generator(folder: Path, teacher: Path) -> tuple[Backbone, dict]:
    """Verify and load the generator (frozen, evaluation mode) on its teacher's schedule, and its generator.json."""
    folder = Path(folder)
    verify_manifest(folder)
    record, family = read_json(folder / "generator.json"), family_of(teacher)
    expected, found = record["teacher_sha256"], recorded_sha256(teacher)
    if found != expected:
        raise UserError(
            f"{folder}: distilled from the teacher {expected[:12]}, but {teacher} is {found[:12]}; "
            "give the teacher it was distilled from"
        )
    adapters = folder / family.NETWORK / FILE
    if not adapters.is_file():
        return family.load_network(folder / family.NETWORK, Path(teacher)), record
    backbone = family.load(Path(teacher))
    merge(backbone.network, adapters, family.NETWORK)
    return backbone, record


def generator_folder(path: Path) -> Path:
    """Find the generator of a run: `path` itself, or the folder `generator` in runs/NAME."""
    for folder in (path, Row(path).generator):
        if (folder / "generator.json").is_file():
            return folder
    what = "has no generator.json" if path.is_dir() else "no such folder"
    raise UserError(f"--generator {path}: {what}; expected results/EXPERIMENT/runs/NAME of a finished run")


def find_teacher(generator: Path) -> Path:
    """Find the prepared teacher of a generator by its hash, next to the experiment's runs/."""
    results = [generator, *generator.resolve().parents][:4][-1]  # a shallow path has fewer
    expected = read_json(generator / "generator.json").get("teacher_sha256")
    for folder in Results(results).teachers():
        if (folder / "manifest.json").is_file() and recorded_sha256(folder) == expected:
            return folder
    raise UserError(
        f"--teacher: not given, and none in {results} is the one {generator} was distilled from ({str(expected)[:12]}). "
        "Fix: give --teacher DIR"
    )


def generator_sha256(folder: Path) -> str:
    """Return the hash of the weight file, which identifies a generator in every table."""
    (weights,) = Path(folder).glob("*/*.safetensors")
    return sha256_file(weights)

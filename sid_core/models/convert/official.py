"""Import published checkpoints: pickles `dict(ema=UNet2DConditionModel)` of other versions of diffusers and torch.

The pickle is read as data (unpickle.py) and checked against the teacher's architecture. File names of the release encode its
settings: batch512_cfg222_t625_4812_v2.pkl is kappa 2 throughout, t_init 625, 4,812 thousand images.
"""

import re
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

from ...config import scale_name
from ...errors import UserError
from ...storage import hub
from ...storage.files import read_json, sha256_file
from ..backbones import StableDiffusion, expect_family
from ..generator import save_generator
from ..scheduler import noise_schedule, prediction_type, scheduler_config
from ..teacher import teacher_sha256
from .unpickle import PickledObject, read_pickle

if TYPE_CHECKING:
    from ...config import ImportSettings

MOST_MODULES, LONGEST_NAME = 20_000, 500  # a UNet of Stable Diffusion has 2,000 modules
# settings of a UNet that change its outputs and no shape of its weights
WITHOUT_SHAPE = (
    "act_fn", "attention_head_dim", "center_input_sample", "downsample_padding", "flip_sin_to_cos", "freq_shift",
    "mid_block_scale_factor", "norm_eps", "norm_num_groups", "num_attention_heads", "resnet_time_scale_shift",
    "time_embedding_type",
)  # fmt: skip


def import_settings(settings: "ImportSettings", teacher: Path, out: Path) -> None:
    """Write the generator of `settings`, from a path or the hub."""
    imported = settings.imported
    path, source = Path(imported.file).expanduser(), {}
    if imported.repo is not None:
        keys = (f"imports.{imported.name}.repo", f"imports.{imported.name}.revision")
        repository = hub.find(imported.repo, imported.revision or "main", keys)
        path, source = repository.fetch(imported.file), {"repo": imported.repo, "commit": repository.commit}
    import_official(path, teacher, out, settings.run.model_dump(), imported.t_init, imported.train_kimg, source)


def import_file(path: Path, teacher: Path, out: Path, t_init: int | None, num_steps: int) -> None:
    """Write the generator of a file, with the settings that a name of the release encodes."""
    (fake_train, fake_eval, guidance), named_t_init, train_kimg = parse_name(path.name)
    if t_init is None:
        t_init = 625 if named_t_init is None else named_t_init
    lsg = fake_train == fake_eval == guidance
    strategy = None if guidance is None else "lsg" if lsg else "custom"
    name = f"lsg-{scale_name(guidance)}" if strategy == "lsg" else path.stem
    scales = {"fake_train": fake_train, "fake_eval": fake_eval, "teacher": guidance}
    run = {"name": name, "strategy": strategy, **scales, "alpha": None, "num_steps": num_steps}
    import_official(path, teacher, out, run | {"seed": None}, t_init, train_kimg, {})


def parse_name(name: str) -> tuple[tuple[float | None, float | None, float | None], int | None, float | None]:
    """Parse (kappa_1, kappa_2 = kappa_3, kappa_4), t_init and thousand images from a file name; None where it has none."""
    match = re.search(r"_cfg([\d.]+)_t(\d+)_(\d+)", name)
    if match is None:
        return (None, None, None), None, None
    third = len(match[1]) // 3  # three numbers without separators: 1.51.51.5
    scales = [match[1][i * third : (i + 1) * third] for i in range(3)]
    if "".join(scales) != match[1] or not all(re.fullmatch(r"\d+(\.\d+)?", scale) for scale in scales):
        return (None, None, None), int(match[2]), float(match[3])
    return tuple(float(scale) for scale in scales), int(match[2]), float(match[3])


def import_official(
    path: Path, teacher: Path, out: Path, run: dict, t_init: int, train_kimg: float | None, source: dict[str, str]
) -> None:
    """Write the generator in a pickle to `out` (runs/<run>/generator), float32, with the file's sha256 in generator.json.

    Args:
        teacher: a prepared teacher, of the generator's architecture.
        run: settings of the distillation; None where unknown.
        source: repository and commit of the file, for generator.json.
    """
    if not 0 <= t_init <= 999 or not 1 <= run["num_steps"] <= max(t_init, 1):
        raise UserError(f"t_init={t_init}, num_steps={run['num_steps']}: expected 0–999, and 1 to t_init steps")
    expect_family(teacher, StableDiffusion)
    sha256, config = teacher_sha256(teacher), scheduler_config(teacher)
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(read_json(teacher / "unet" / "config.json"))
    network = _read_network(path)
    weights = state_dict(network)
    _check_weights(weights, unet, path, teacher)
    _check_settings(network, unet, path, teacher)
    record = {
        "run": run,
        "t_init": t_init,
        "num_steps": run["num_steps"],
        "prediction_type": prediction_type(config),
        "train_kimg": train_kimg,
        "teacher_sha256": sha256,
        "imported": {"file": path.name, "sha256": sha256_file(path), **source},
    }
    backbone = StableDiffusion(unet, noise_schedule(config), prediction_type(config))
    save_generator(out, backbone, {name: tensor.float() for name, tensor in weights.items()}, record)


def _read_network(path: Path) -> PickledObject:
    """Read the UNet under the key `ema`."""
    content = read_pickle(path)
    if not isinstance(content, dict) or "ema" not in content:
        found = f"a dict of {', '.join(map(str, content))}" if isinstance(content, dict) else type(content).__name__
        raise UserError(f"{path}: expected a pickle of dict(ema=UNet2DConditionModel), got {found[:200]}")
    network = content["ema"]
    kind = network.symbol.name if isinstance(network, PickledObject) else type(network).__name__
    if kind != "UNet2DConditionModel":
        raise UserError(f"{path}: ema: expected a UNet2DConditionModel, got a {kind}")
    return network


def state_dict(network: PickledObject) -> dict[str, Tensor]:
    """Collect parameters and persistent buffers of a module read as data, with the names of torch's `state_dict`."""
    result: dict[str, Tensor] = {}
    waiting, visited = [("", network)], 0
    while waiting:
        prefix, module = waiting.pop()
        visited += 1
        if visited > MOST_MODULES or len(prefix) > LONGEST_NAME:
            raise UserError(f"{prefix[:100]}: expected a UNet, got cyclic or too many modules")
        transient = module.state.get("_non_persistent_buffers_set") or ()
        for table, kind in (("_parameters", Tensor), ("_buffers", Tensor), ("_modules", PickledObject)):
            entries = module.state.get(table, {})
            wrong = "" if isinstance(entries, dict) else type(entries).__name__
            for name, value in () if wrong else entries.items():
                if isinstance(value, kind) and isinstance(name, str):
                    if kind is PickledObject:
                        waiting.append((f"{prefix}{name}.", value))
                    elif name not in transient or table != "_buffers":
                        result[prefix + name] = value
                elif value is not None:
                    wrong = type(value).__name__
            if wrong:
                raise UserError(f"{prefix}{table}: expected the parameters of a UNet, got {wrong}")
    return result


def _check_weights(weights: dict[str, Tensor], unet: UNet2DConditionModel, path: Path, teacher: Path) -> None:
    """Check that names and shapes are the teacher's, and all values finite."""
    expected = {name: tuple(tensor.shape) for name, tensor in unet.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    differences = [f"{name} is missing" for name in expected if name not in found]
    differences += [f"{name} is unknown" for name in found if name not in expected]
    changed = [name for name, shape in expected.items() if found.get(name, shape) != shape]
    differences += [f"{name} is {list(found[name])}, expected {list(expected[name])}" for name in changed]
    if differences:
        more = f"; and {len(differences) - 3} more" if len(differences) > 3 else ""
        raise UserError(
            f"{path}: expected the architecture of {teacher}: {'; '.join(differences[:3])}{more}. "
            "Fix: give the teacher it was distilled from"
        )
    for name, tensor in weights.items():
        if not tensor.is_floating_point() or not tensor.isfinite().all():
            raise UserError(f"{path}: {name}: expected finite numbers, got other {tensor.dtype}. Fix: fetch it again")


def _check_settings(network: PickledObject, unet: UNet2DConditionModel, path: Path, teacher: Path) -> None:
    """Check settings that change outputs and no shapes: equal weights would give another network."""
    config = network.state.get("_internal_dict")
    own = config.items if isinstance(config, PickledObject) else {}
    for key in WITHOUT_SHAPE:
        expected, found = (
            list(value) if isinstance(value, tuple) else value
            for value in (unet.config.get(key), own.get(key, unet.config.get(key)))
        )
        if expected != found:
            raise UserError(
                f"{path}: {key}={found}: expected {expected} of {teacher}. Fix: give the teacher it was distilled from"
            )

"""The teacher: a diffusers directory (tokenizer, text_encoder, unet, vae, scheduler) from one of the sources.

`embedded` ships with the package, `local` is any Stable Diffusion directory on disk, `hub` is one in a repository. From here
on they are one.
"""

import logging
import math
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from diffusers import UNet2DConditionModel

from ..cluster.machine import device
from ..data import shapes
from ..errors import UserError
from ..method.denoiser import Denoiser
from ..method.guided_pair import prove_pair
from ..storage.files import atomic_path, digest, read_json, verify_manifest, write_json, write_manifest
from .components import load_component
from .scheduler import noise_schedule, prediction_type, scheduler_config
from .supported import check_finite, settle_length
from .text import TextEncoder
from .vae import ImageCodec

if TYPE_CHECKING:
    from ..config import Teacher

log = logging.getLogger(__name__)

# what a component folder must hold; any one of the alternatives
COMPONENTS = {
    "tokenizer": ("tokenizer.json", "vocab.json"),
    "text_encoder": ("model.safetensors",),
    "unet": ("diffusion_pytorch_model.safetensors",),
    "vae": ("diffusion_pytorch_model.safetensors",),
    "scheduler": ("scheduler_config.json",),
}
TIMESTEPS = 1000  # noise levels of t_init, t_min and t_max, and of the eps error


def prepare_teacher(settings: "Teacher", out: Path) -> None:
    """Bring the teacher to `out` with provenance.json and a manifest that every later stage verifies.

    Raises:
        UserError: a component is missing, damaged, of other shapes than its config says, of another kind of model, or needs
            what the method lacks.
    """
    from .fetch import fetch_teacher

    path = None
    if settings.source != "hub":
        path = shapes.ASSETS / "teacher" if settings.source == "embedded" else Path(settings.path).expanduser()
    place = f"teacher.repo={settings.repo}" if path is None else str(path)
    with atomic_path(out) as folder:
        folder.mkdir()
        provenance = fetch_teacher(settings, path, folder)
        provenance |= _check_parts(folder, place)
        write_json(folder / "provenance.json", provenance)
        write_manifest(folder)


def _check_parts(folder: Path, place: str) -> dict:
    """Load the brought components and see that they fit the method and each other; state what a config left open.

    Returns what was found out, for the record: tokens of a prompt, and the prediction type, stated or measured.
    """
    config = scheduler_config(folder)
    steps = len(noise_schedule(config))
    if steps != TIMESTEPS:
        raise UserError(
            f"{place}: scheduler: num_train_timesteps={steps}: expected {TIMESTEPS}, to which t_init, t_min and t_max "
            "refer. Fix: give a teacher of such a schedule"
        )
    shape, positions = latent_shape(folder), _positions(folder)
    tokens = settle_length(folder, positions, place)
    denoiser, encoder, codec = (
        load_denoiser(folder),
        TextEncoder.from_directory(folder),
        ImageCodec.from_directory(folder),
    )
    for component, model in (("unet", denoiser.unet), ("text_encoder", encoder.model), ("vae", codec.vae)):
        check_finite(component, model, place)
    if (ids := len(encoder.tokenizer)) > (rows := encoder.model.get_input_embeddings().num_embeddings):
        raise UserError(
            f"{place}: tokenizer has {ids} tokens, text_encoder expects {rows}; they do not belong together"
        )
    empty, width = encoder.empty(), denoiser.unet.config.cross_attention_dim
    if empty.shape[-1] != width:
        raise UserError(
            f"{place}: text_encoder gives {empty.shape[-1]} values a token, unet expects {width}; they do not belong together"
        )
    if codec.latent_channels != shape[0]:
        raise UserError(
            f"{place}: vae has {codec.latent_channels} latent channels, unet expects {shape[0]}; they do not belong together"
        )
    return {"tokens": tokens, "prediction_type": _settle_prediction_type(folder, denoiser, empty, place)}


def _positions(folder: Path) -> int:
    config = read_json(folder / "text_encoder" / "config.json")
    return config.get("text_config", config).get("max_position_embeddings", 77)  # transformers' default


def _settle_prediction_type(folder: Path, denoiser: Denoiser, empty: torch.Tensor, place: str) -> dict:
    """What the UNet predicts, as the scheduler states it; where it states nothing, as measured, and written into the copy.

    Raises:
        UserError: the errors show neither type.
    """
    config = scheduler_config(folder)
    if config.get("prediction_type") is not None:
        return {"value": prediction_type(config), "stated": True}
    from .prediction import name_type, x0_errors

    where = device()
    log.info("%s: the scheduler states no prediction_type; measuring which it is", place)
    errors = x0_errors(denoiser.unet.to(where), denoiser.schedule.to(where), empty.to(where), latent_shape(folder))
    found, shown = name_type(errors), ", ".join(f"{kind} {error:.2g}" for kind, error in errors.items())
    if found is None:
        raise UserError(
            f"{place}: scheduler: prediction_type is not stated, and the x_0 errors of the teacher on its own samples show "
            f"neither ({shown}; expected one below 0.5 and half of the other). Fix: set it to epsilon or v_prediction in "
            "scheduler/scheduler_config.json of a local copy"
        )
    log.info("%s: prediction_type=%s by relative x_0 errors on its own samples (%s)", place, found, shown)
    write_json(folder / "scheduler" / "scheduler_config.json", config | {"prediction_type": found})
    finite = {kind: error if math.isfinite(error) else None for kind, error in errors.items()}
    return {"value": found, "stated": False, "x0_errors": finite}


def teacher_sha256(folder: Path) -> str:
    """One hash of all the teacher's weights and configs, after checking them against the manifest."""
    verify_manifest(folder)
    return recorded_sha256(folder)


def recorded_sha256(folder: Path) -> str:
    """The same by the manifest alone: the weights, gigabytes, are not read."""
    files = read_json(Path(folder) / "manifest.json")["files"]
    return digest({name: entry["sha256"] for name, entry in files.items() if name != "provenance.json"})


def load_denoiser(folder: Path) -> Denoiser:
    """The teacher as an estimate of x_0: float32, evaluation mode, no gradients for its weights."""
    config = scheduler_config(folder)
    unet = load_component(UNet2DConditionModel, Path(folder) / "unet")
    prove_pair(unet)
    return Denoiser(unet, noise_schedule(config), prediction_type(config)).eval().requires_grad_(False)


def latent_shape(folder: Path) -> tuple[int, int, int]:
    """(C, H, W) of the latents the UNet was made for.

    Raises:
        UserError: the UNet's config does not state their size.
    """
    config = read_json(Path(folder) / "unet" / "config.json")
    size = config.get("sample_size")
    sides = size if isinstance(size, list) and len(size) == 2 else [size, size]
    if not all(isinstance(side, int) and side > 0 for side in sides):
        raise UserError(
            f"{folder}: unet: sample_size={size}: expected the side of the latents it was trained at. Fix: state it in "
            "unet/config.json of a local copy (64 for images of 512 pixels)"
        )
    return config.get("in_channels", 4), *sides

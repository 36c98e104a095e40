"""The teacher: a diffusers directory (tokenizer, text_encoder, unet, vae, scheduler) from one of the sources.

`embedded` ships with the package, `local` is any Stable Diffusion directory on disk, `hub` is one in a repository. From here
on they are one.
"""

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, UNet2DConditionModel
from safetensors import SafetensorError

from .. import shapes
from ..errors import UserError
from ..files import atomic_path, digest, read_json, verify_manifest, write_json, write_manifest
from ..method.denoiser import Denoiser
from ..method.guided_pair import prove_pair
from ..method.schedule import NoiseSchedule, prediction_type

if TYPE_CHECKING:
    from ..config import Teacher

# what a component folder must hold; any one of the alternatives
COMPONENTS = {
    "tokenizer": ("tokenizer.json", "vocab.json"),
    "text_encoder": ("model.safetensors",),
    "unet": ("diffusion_pytorch_model.safetensors",),
    "vae": ("diffusion_pytorch_model.safetensors",),
    "scheduler": ("scheduler_config.json",),
}
SCHEDULE_KEYS = (
    *("num_train_timesteps", "beta_schedule", "beta_start", "beta_end", "trained_betas"),
    *("rescale_betas_zero_snr", "prediction_type"),
)
# other forms of the same weights that hub snapshots carry along
UNUSED = ("*.bin", "*.ckpt", "*.msgpack", "*.onnx", "*.fp16.safetensors", "*.non_ema.safetensors")


def prepare_teacher(settings: "Teacher", out: Path) -> None:
    """Bring the teacher to `out` with provenance.json and a manifest that every later stage verifies.

    Raises:
        UserError: a component is missing, damaged, of other shapes than its config says, or needs what the method lacks.
    """
    from .fetch import fetch_teacher
    from .text import TextEncoder
    from .vae import ImageCodec

    with atomic_path(out) as folder:
        folder.mkdir()
        if settings.source == "hub":
            source, provenance = settings.repo, fetch_teacher(settings, folder)
            _check_components(folder, settings.repo)
        else:
            source = shapes.ASSETS / "teacher" if settings.source == "embedded" else Path(settings.path).expanduser()
            provenance = {"source": settings.source, "path": settings.path}
            _check_components(source, str(source))
            _copy(source, folder)
        width = load_denoiser(folder).unet.config.cross_attention_dim
        encoded = TextEncoder.from_directory(folder).empty().shape[-1]
        if encoded != width:
            raise UserError(
                f"{source}: text_encoder gives {encoded} values a token, unet expects {width}; they do not belong together"
            )
        codec = ImageCodec.from_directory(folder)
        if codec.latent_channels != latent_shape(folder)[0]:
            raise UserError(
                f"{source}: vae has {codec.latent_channels} latent channels, unet expects {latent_shape(folder)[0]}; "
                "they do not belong together"
            )
        write_json(folder / "provenance.json", provenance)
        write_manifest(folder)


def _copy(source: Path, folder: Path) -> None:
    for name in COMPONENTS:
        shutil.copytree(source / name, folder / name, ignore=shutil.ignore_patterns(*UNUSED))
    if (source / "model_index.json").is_file():
        shutil.copy(source / "model_index.json", folder)


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
    return Denoiser(unet, NoiseSchedule.from_config(config), prediction_type(config)).eval().requires_grad_(False)


def load_component(kind: type, folder: Path) -> torch.nn.Module:
    """A diffusers or transformers model from its folder, float32 safetensors only; UserError names what is wrong with it."""
    options = {"use_safetensors": True, "torch_dtype": torch.float32, "output_loading_info": True}
    try:
        model, found = kind.from_pretrained(folder, **options, **_strict(kind))
    except (OSError, ValueError, RuntimeError, SafetensorError, KeyError) as error:
        raise UserError(
            f"{folder}: cannot be loaded as {kind.__name__}: {' '.join(str(error).split())[:300]}"
        ) from None
    missing = sorted(found["missing_keys"])
    if missing:  # both libraries would go on with random ones
        raise UserError(f"{folder}: lacks weights of {kind.__name__}: {', '.join(missing[:5])}; get the file again")
    return model


def _strict(kind: type) -> dict:
    # diffusers' default needs the package accelerate; without it shapes are checked on load just the same
    return {"low_cpu_mem_usage": False} if kind.__module__.startswith("diffusers") else {}


def scheduler_config(folder: Path) -> dict:
    """The teacher's scheduler_config.json."""
    return read_json(Path(folder) / "scheduler" / "scheduler_config.json")


def latent_shape(folder: Path) -> tuple[int, int, int]:
    """(C, H, W) of the latents the UNet was made for."""
    config = read_json(Path(folder) / "unet" / "config.json")
    size = config["sample_size"]
    height, width = size if isinstance(size, list) else (size, size)
    return config["in_channels"], height, width


def make_solver(name: str, folder: Path, steps: int) -> DDIMScheduler | DPMSolverMultistepScheduler:
    """Return a diffusers sampler with its timesteps set: 'ddim' (eta 0) or 'dpm-solver' (DPM-Solver++ 2M).

    Only the noise schedule comes from the teacher's config. A baseline must not depend on the sampler that the teacher happens to be
    shipped with: its config may set another order or spacing, clip x_0, or let DDIM end at abar_0 instead of at x_0.
    """
    config = scheduler_config(folder)
    schedule = {key: config[key] for key in SCHEDULE_KEYS if key in config}
    if name == "ddim":
        solver = DDIMScheduler(**schedule, timestep_spacing="trailing", clip_sample=False, set_alpha_to_one=True)
    else:
        solver = DPMSolverMultistepScheduler(
            **schedule,
            timestep_spacing="trailing",
            algorithm_type="dpmsolver++",
            solver_order=2,
            final_sigmas_type="zero",
        )
    solver.set_timesteps(steps)
    return solver


def _check_components(source: Path, called: str) -> None:
    if not source.is_dir():
        raise UserError(
            f"teacher.path={source}: no such folder; expected a diffusers directory with {', '.join(COMPONENTS)}"
        )
    for name, alternatives in COMPONENTS.items():
        if not any((source / name / file).is_file() for file in alternatives):
            raise UserError(
                f"{called}: component {name} is missing ({' or '.join(f'{name}/{file}' for file in alternatives)})"
            )
    NoiseSchedule.from_config(scheduler_config(source))

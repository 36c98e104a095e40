"""Load transformers with flow matching: what their families share, the schedule and its solvers."""

import math
from collections.abc import Iterator
from inspect import signature
from pathlib import Path
from typing import ClassVar, Self

import diffusers
from diffusers import DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ...errors import UserError
from ...method import Steps
from ...method.schedule import FlowSchedule
from ...storage.files import read_json, write_json
from ..scheduler import scheduler_config
from ..vae import pixels_per_latent
from .layout import DiffusersLayout, Usage

# on the model card
RESCALED = (
    "The pipeline starts from z where training started from {start} z, so latents and times are in units of {start}: weights of the "
    "network's input layer are multiplied by it, and the VAE's scaling factor is divided by it."
)
SHIFT_KEYS = ("num_train_timesteps", "use_dynamic_shifting", "time_shift_type")
SCHEDULERS = ("FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler")
# those of diffusers' other schedulers that can follow a flow, if `use_flow_sigmas` is set
SOLVERS = ("DPMSolverMultistepScheduler", "DPMSolverSinglestepScheduler", "UniPCMultistepScheduler")
# attention and feed-forward of blocks in which image and text attend to each other
JOINT_ADAPTED = (
    "to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out",
    "ff.net.0.proj", "ff.net.2", "ff_context.net.0.proj", "ff_context.net.2",
)  # fmt: skip


class FlowTransformer(DiffusersLayout):
    """A transformer that predicts the velocity eps - x_0 on the straight path of flow matching."""

    NETWORK = "transformer"
    INPUT: ClassVar[str]  # weight of the linear layer that takes the latents
    PATCH: ClassVar[int | None] = None  # side of a patch in latents; None: the network's setting

    def blocks(self) -> Iterator[nn.Module]:
        yield from self.network.transformer_blocks

    @classmethod
    def load_network(cls, weights: Path, teacher: Path) -> Self:
        return cls(cls.load_component(cls.NETWORK, weights), cls.load_schedule(teacher), "flow").frozen()

    @classmethod
    def load_schedule(cls, folder: Path) -> FlowSchedule:
        """Return the noise schedule of a prepared directory, whose shift is the scheduler's."""
        config = scheduler_config(folder)
        return FlowSchedule(flow_shift(config, cls.image_tokens(folder)), config.get("num_train_timesteps", 1000))

    @classmethod
    def image_tokens(cls, folder: Path) -> int:
        """Return the number of patches of an image, on which a dynamic shift depends."""
        _, height, width = cls.latent_shape(folder)
        patch = cls.PATCH or read_json(Path(folder) / cls.NETWORK / "config.json")["patch_size"]
        return height // patch * (width // patch)

    @classmethod
    def noise_levels(cls, steps: int) -> list[float] | None:
        """Return the noise levels of the pipeline's Euler steps before the shift; None: those of its scheduler."""
        return None

    @classmethod
    def solver(cls, name: str, folder: Path, steps: int) -> "FlowEuler | FlowDPMSolver":
        if name == "flow-euler":
            config, tokens = scheduler_config(folder), cls.image_tokens(folder)
            settings = {key: config[key] for key in SHIFT_KEYS if key in config} | {"shift": static_shift(config)}
            solver = FlowEuler(**settings)
            solver.mu, solver.noise_levels = dynamic_shift(config, tokens), cls.noise_levels
        elif name == "dpm-solver":
            shift = cls.load_schedule(folder).shift
            solver = FlowDPMSolver(prediction_type="sample", use_flow_sigmas=True, flow_shift=shift)
        else:
            raise UserError(
                f"solver={name}: expected flow-euler or dpm-solver for {cls.__name__}, a teacher with flow matching. "
                "Fix: set baselines.solver"
            )
        solver.set_timesteps(steps)
        return solver

    @classmethod
    def exported(cls, folder: Path, steps: Steps) -> tuple[FlowMatchEulerDiscreteScheduler, Usage]:
        """Return diffusers' Euler scheduler without a shift: one step is x_0, further ones are given.

        diffusers' pipelines start at t = 1 from z, a generator at t_init from t_init z. So time and latents are in units of
        t_init: x / t_init over t / t_init has the same velocity. `fit_export` changes the components accordingly.
        """
        schedule, start = cls.load_schedule(folder), steps.t_init / 1000
        levels = [t / start for t in schedule.steps(steps.t_init, steps.count)]
        height, width = (side * pixels_per_latent(folder) for side in cls.latent_shape(folder)[1:])
        call = "num_inference_steps=1" if steps.count == 1 else f"sigmas={levels}"
        call += f", height={height}, width={width}"  # some pipelines have a size of their own
        scheduler = FlowMatchEulerDiscreteScheduler(num_train_timesteps=round(schedule.last_time * start))
        return scheduler, Usage(call, note="" if start == 1 else RESCALED.format(start=f"{start:g}"))

    @classmethod
    def fit_export(cls, folder: Path, steps: Steps) -> None:
        start = steps.t_init / 1000
        if start == 1:
            return
        weights = next((folder / cls.NETWORK).glob("*.safetensors"), None)
        if weights is None:
            raise UserError(
                f"t_init={steps.t_init}: expected 1000 for adapters; diffusers' pipelines of flow matching start from noise alone, "
                "and adapters cannot rescale the network's input. Fix: distil with t_init: 1000"
            )
        tensors = load_file(weights)
        tensors[cls.INPUT] *= start
        save_file(tensors, weights, metadata={"format": "pt"})
        path = folder / "vae" / "config.json"
        default = signature(getattr(diffusers, cls.CLASSES["vae"][0])).parameters["scaling_factor"].default
        config = read_json(path)
        write_json(path, config | {"scaling_factor": config.get("scaling_factor", default) / start})

    @classmethod
    def check(cls, folder: Path, place: str) -> dict:
        """Load the fetched components, and check that they fit the method and each other."""
        check_scheduler(scheduler_config(folder), place)
        found = cls.check_components(folder, place)[-1]
        return found | {"prediction_type": {"value": "flow", "stated": True}}


class FlowEuler(FlowMatchEulerDiscreteScheduler):
    """diffusers' Euler solver, stepping with x_0; its times are t."""

    init_noise_sigma, mu = 1.0, None
    noise_levels = staticmethod(lambda steps: None)

    def set_timesteps(self, steps: int, device: str | None = None) -> None:
        super().set_timesteps(steps, device, sigmas=self.noise_levels(steps), mu=self.mu)
        self.timesteps = self.sigmas[:-1]
        self.set_begin_index(0)

    def scale_model_input(self, x_t: Tensor, t: Tensor) -> Tensor:
        return x_t

    def step(self, x0_hat: Tensor, t: Tensor, x_t: Tensor) -> object:
        return super().step((x_t - x0_hat) / t, t, x_t)


class FlowDPMSolver(DPMSolverMultistepScheduler):
    """diffusers' DPM-Solver++ (2M) on a flow, stepping with x_0; its times are t, which diffusers rounds to thousandths."""

    def set_timesteps(self, steps: int, device: str | None = None) -> None:
        super().set_timesteps(steps, device)
        self.timesteps = self.sigmas[:-1].to(device)
        self.set_begin_index(0)


def flow_shift(config: dict, tokens: int) -> float:
    """Return s of a scheduler_config.json, of an image of `tokens` patches where the shift depends on them."""
    mu = dynamic_shift(config, tokens)
    if mu is None:
        return static_shift(config)
    return mu if config.get("time_shift_type") == "linear" else math.exp(mu)


def static_shift(config: dict) -> float:
    return config.get("flow_shift", config.get("shift", 1.0))


def dynamic_shift(config: dict, tokens: int) -> float | None:
    """Return mu, which is linear in the number of patches; None where the shift does not depend on it."""
    if not config.get("use_dynamic_shifting", False):
        return None
    first, last = config.get("base_image_seq_len", 256), config.get("max_image_seq_len", 4096)
    low, high = config.get("base_shift", 0.5), config.get("max_shift", 1.15)
    return low + (high - low) * (tokens - first) / (last - first)


def check_scheduler(config: dict, place: str) -> None:
    """Reject a scheduler that follows no flow from t = 1 to 0."""
    name = config.get("_class_name")
    if name not in (*SCHEDULERS, None) and not (name in SOLVERS and config.get("use_flow_sigmas", False)):
        raise UserError(
            f"{place}: scheduler: _class_name={name}: expected one of flow matching, such as {SCHEDULERS[0]}. "
            "Fix: take the scheduler of the same model"
        )
    if config.get("invert_sigmas", False):
        raise UserError(f"{place}: scheduler: invert_sigmas=true: expected false. Fix: give another teacher")

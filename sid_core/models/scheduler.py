"""Read a teacher's scheduler_config.json: noise schedule, prediction type, and solvers on that schedule.

Betas follow diffusers' DDPMScheduler.
"""

import math
from pathlib import Path

import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler
from torch import Tensor

from ..errors import UserError, one_line
from ..method.schedule import VPSchedule
from ..storage.files import read_json

# diffusers' schedulers of a discrete DDPM schedule of betas; flow matching, EDM and consistency models have others
SCHEDULERS = {
    "DDPM", "DDIM", "DDIMParallel", "DDPMParallel", "PNDM", "LMSDiscrete", "EulerDiscrete", "EulerAncestralDiscrete",
    "HeunDiscrete", "KDPM2Discrete", "KDPM2AncestralDiscrete", "DPMSolverMultistep", "DPMSolverSinglestep",
    "DPMSolverSDE", "DEISMultistep", "UniPCMultistep", "SASolver",
}  # fmt: skip
SCHEDULE_KEYS = (
    "num_train_timesteps", "beta_schedule", "beta_start", "beta_end", "trained_betas", "rescale_betas_zero_snr",
    "prediction_type",
)  # fmt: skip


def scheduler_config(folder: Path) -> dict:
    """Return the teacher's scheduler_config.json."""
    return read_json(Path(folder) / "scheduler" / "scheduler_config.json")


def noise_schedule(config: dict) -> VPSchedule:
    """Build the noise schedule of a diffusers scheduler_config.json; reject settings that the method does not support."""
    name = config.get("_class_name")
    if name is not None and name.removesuffix("Scheduler") not in SCHEDULERS:
        raise UserError(
            f"scheduler: _class_name={name}: expected a scheduler of a discrete DDPM schedule, such as DDIMScheduler. "
            "Fix: give another teacher"
        )
    if config.get("use_flow_sigmas", False) or config.get("timestep_type", "discrete") != "discrete":
        key = "use_flow_sigmas" if config.get("use_flow_sigmas", False) else "timestep_type"
        raise UserError(f"scheduler: {key}={config[key]}: expected a discrete DDPM schedule. Fix: give another teacher")
    for key in ("clip_sample", "thresholding"):
        if config.get(key, False):
            raise UserError(f"scheduler: {key}=true: latents have no bounds. Fix: set false in scheduler_config.json")
    prediction_type(config)
    abar = torch.cumprod(1 - _betas(config), 0)
    if config.get("rescale_betas_zero_snr", False):
        if prediction_type(config) == "epsilon":
            raise UserError(
                "scheduler: rescale_betas_zero_snr=true with prediction_type=epsilon has no x_0 at the last step; "
                "expected v_prediction, or rescale_betas_zero_snr=false"
            )
        abar = _zero_terminal_snr(abar)
    try:
        return VPSchedule(abar)
    except ValueError as error:
        raise UserError(f"noise schedule: {error}. Fix: check the scheduler's betas") from None


def prediction_type(config: dict) -> str:
    """Return 'epsilon' (diffusers' default) or 'v_prediction'; reject others."""
    kind = config.get("prediction_type") or "epsilon"
    if kind not in ("epsilon", "v_prediction"):
        raise UserError(f"scheduler: prediction_type={kind}: expected epsilon or v_prediction")
    return kind


def _betas(config: dict) -> Tensor:
    """Compute beta_t in float32 as diffusers does: the network was trained with its rounding."""
    if config.get("trained_betas") is not None:
        return torch.tensor(config["trained_betas"], dtype=torch.float32)
    kind, steps = config.get("beta_schedule"), config.get("num_train_timesteps", 1000)
    needed = ("beta_schedule",) if kind == "squaredcos_cap_v2" else ("beta_schedule", "beta_start", "beta_end")
    if missing := [key for key in needed if config.get(key) is None]:
        raise UserError(
            f"scheduler: {', '.join(missing)} missing; expected the betas the teacher was trained with. Fix: state them in "
            "scheduler_config.json (0.00085, 0.012 and scaled_linear are Stable Diffusion's)"
        )
    start, end = config.get("beta_start"), config.get("beta_end")
    if kind == "linear":
        return torch.linspace(start, end, steps, dtype=torch.float32)
    if kind == "scaled_linear":
        return torch.linspace(start**0.5, end**0.5, steps, dtype=torch.float32) ** 2
    if kind == "squaredcos_cap_v2":

        def abar(u: float) -> float:
            return math.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2

        return torch.tensor([min(1 - abar((i + 1) / steps) / abar(i / steps), 0.999) for i in range(steps)])
    raise UserError(f"scheduler: beta_schedule={kind}: expected scaled_linear, linear or squaredcos_cap_v2")


def _zero_terminal_snr(abar: Tensor) -> Tensor:
    """Shift and scale sqrt(abar) so that its last value is 0 and its first unchanged (arXiv 2305.08891, algorithm 1)."""
    root = abar.sqrt()
    return ((root - root[-1]) * (root[0] / (root[0] - root[-1]))) ** 2


def make_solver(name: str, folder: Path, steps: int) -> DDIMScheduler | DPMSolverMultistepScheduler:
    """Return a solver with its timesteps set: 'ddim' (eta 0), 'dpm-solver' (DPM-Solver++ 2M), 'dpm-solver-karras'.

    Only the noise schedule comes from the teacher's config, so that baselines do not depend on the teacher's default
    scheduler: it may have another order or spacing, clip x_0, or let DDIM end at abar_0 instead of x_0.
    """
    if name == "flow-euler":
        raise UserError(
            f"solver={name}: expected ddim, dpm-solver or dpm-solver-karras for a teacher without flow matching. "
            "Fix: set baselines.solver"
        )
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
            use_karras_sigmas=name == "dpm-solver-karras",
        )
    try:
        solver.set_timesteps(steps)
    except ValueError as error:
        raise UserError(f"steps={steps}: {one_line(error)}") from None
    return solver


def euler_scheduler(teacher: Path, t_init: int) -> EulerDiscreteScheduler:
    """Make diffusers' Euler scheduler from t_init of the teacher's schedule to x_0, by default in one step.

    A generator's input is sigma(t_init) z, not z as for most schedulers. diffusers' Euler scheduler works in x / alpha: it
    starts from (sigma / alpha) z, scales the network's input by alpha, and steps to noise level 0, which is x_0. With the
    teacher's betas cut off after t_init, "trailing" spacing puts its one step at t_init. Between several steps it keeps the
    implied noise, as `step_noise: ddim` does; the pipeline's argument `timesteps` gives it the steps of training, which no
    spacing of diffusers has.
    """
    betas = make_solver("ddim", teacher, 1).betas[: t_init + 1].tolist()
    if betas[-1] >= 1:
        raise UserError(f"t_init={t_init}: alpha is 0 there; diffusers divides by it. Fix: distil from a lower one")
    return EulerDiscreteScheduler(
        num_train_timesteps=t_init + 1,
        trained_betas=betas,
        prediction_type=prediction_type(scheduler_config(teacher)),
        timestep_spacing="trailing",
        steps_offset=1,  # unused, but the pipeline warns of any other value
    )

"""The teacher's discrete DDPM schedule: x_t = alpha_t x_0 + sigma_t eps, alpha_t^2 + sigma_t^2 = 1.

Follows diffusers' DDPMScheduler (betas) and the symbols of arXiv 2406.01561, section 2.
"""

import math

import torch
from torch import Tensor, nn

from ..errors import UserError

# diffusers' samplers of a discrete DDPM schedule of betas; flow matching, EDM and consistency models have others
SCHEDULERS = {
    f"{name}Scheduler"
    for name in (
        *(
            "DDPM",
            "DDIM",
            "DDIMParallel",
            "DDPMParallel",
            "PNDM",
            "LMSDiscrete",
            "EulerDiscrete",
            "EulerAncestralDiscrete",
        ),
        *("HeunDiscrete", "KDPM2Discrete", "KDPM2AncestralDiscrete", "DPMSolverMultistep", "DPMSolverSinglestep"),
        *("DPMSolverSDE", "DEISMultistep", "UniPCMultistep", "SASolver"),
    )
}


class NoiseSchedule(nn.Module):
    """alpha, sigma and SNR of integer noise levels t, each (B,) int64 -> (B, 1, 1, 1) float32."""

    def __init__(self, alphas_cumprod: Tensor):
        """alphas_cumprod: abar_t for t = 0..T-1, (T,) in [0, 1], not increasing."""
        super().__init__()
        abar = alphas_cumprod.double()
        if abar.ndim != 1 or not ((abar >= 0) & (abar <= 1)).all() or not (abar.diff() <= 0).all():
            raise UserError(
                "noise schedule: expected abar_t in [0, 1] that never rises with t; check the scheduler's betas"
            )
        # float64 until here, so that sqrt(1 - abar) keeps its digits at small t
        self.register_buffer("_alpha", abar.sqrt().float(), persistent=False)
        self.register_buffer("_sigma", (1 - abar).sqrt().float(), persistent=False)
        self.register_buffer("_snr", (abar / (1 - abar)).float(), persistent=False)

    def __len__(self) -> int:
        return len(self._alpha)

    def alpha(self, t: Tensor) -> Tensor:
        """sqrt(abar_t): what is left of x_0."""
        return self._alpha[t].view(-1, 1, 1, 1)

    def sigma(self, t: Tensor) -> Tensor:
        """sqrt(1 - abar_t): how much noise."""
        return self._sigma[t].view(-1, 1, 1, 1)

    def snr(self, t: Tensor) -> Tensor:
        """alpha^2 / sigma^2."""
        return self._snr[t].view(-1, 1, 1, 1)

    def add_noise(self, x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """x_t = alpha_t x_0 + sigma_t eps, (B, C, H, W)."""
        return self.alpha(t) * x0 + self.sigma(t) * eps

    @classmethod
    def from_config(cls, config: dict) -> "NoiseSchedule":
        """Build from a diffusers scheduler_config.json.

        Raises:
            UserError: a setting this method cannot honour (a scheduler of another family or without betas, clipping or
                thresholding of x_0, an unknown beta schedule, a prediction type other than epsilon and v_prediction, zero
                terminal SNR with epsilon prediction).
        """
        name = config.get("_class_name")
        if name is not None and name.removesuffix("Scheduler") + "Scheduler" not in SCHEDULERS:
            raise UserError(
                f"scheduler: _class_name={name}: expected a scheduler of a discrete DDPM schedule, such as DDIMScheduler. "
                "Fix: give another teacher"
            )
        if config.get("use_flow_sigmas", False) or config.get("timestep_type", "discrete") != "discrete":
            key = "use_flow_sigmas" if config.get("use_flow_sigmas", False) else "timestep_type"
            raise UserError(
                f"scheduler: {key}={config[key]}: expected integer noise levels of a DDPM schedule. Fix: give another teacher"
            )
        for key in ("clip_sample", "thresholding"):
            if config.get(key, False):
                raise UserError(
                    f"scheduler: {key}=true bounds x_0, which latents are not; set it to false in scheduler_config.json"
                )
        prediction_type(config)
        betas = _betas(config)
        if config.get("rescale_betas_zero_snr", False):
            if prediction_type(config) == "epsilon":
                raise UserError(
                    "scheduler: rescale_betas_zero_snr=true with prediction_type=epsilon has no x_0 at the last step; "
                    "expected v_prediction, or rescale_betas_zero_snr=false"
                )
            return cls(_zero_terminal_snr(torch.cumprod(1 - betas, 0)))
        return cls(torch.cumprod(1 - betas, 0))


def prediction_type(config: dict) -> str:
    """'epsilon' or 'v_prediction'; anything else is refused by name (diffusers' default is epsilon)."""
    kind = config.get("prediction_type") or "epsilon"
    if kind not in ("epsilon", "v_prediction"):
        raise UserError(f"scheduler: prediction_type={kind}: expected epsilon or v_prediction")
    return kind


def _betas(config: dict) -> Tensor:
    """beta_t in float32, as diffusers computes them (its rounding is part of the trained network)."""
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

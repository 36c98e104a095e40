"""Add noise by a schedule: x_t = alpha_t x_0 + sigma_t eps, where t is an index or a time."""

import math

import torch
from torch import Tensor, nn

NOISE_LEVELS = (20, 980)  # of training, as published; the last is excluded


class Schedule(nn.Module):
    """Maps t (B,) to alpha, sigma and loss weights, each (B, 1, 1, 1) float32.

    A subclass decides the type and the range of t. Settings and NOISE_LEVELS give t in thousandths of that range.

    Attributes:
        limits: the first and the last t of settings.
    """

    limits = (0, 999)

    def alpha(self, t: Tensor) -> Tensor:
        """Return alpha_t, the factor of x_0."""
        raise NotImplementedError

    def sigma(self, t: Tensor) -> Tensor:
        """Return sigma_t, the factor of the noise."""
        raise NotImplementedError

    def fake_weight(self, t: Tensor) -> Tensor:
        """Return the weight of |x0_hat - x_0|^2 in the fake score's loss."""
        raise NotImplementedError

    def draw(self, stream: torch.Generator, batch: int, low: int, high: int) -> Tensor:
        """Draw t (B,) for training, between `low` and `high` in thousandths."""
        raise NotImplementedError

    def steps(self, t_init: int, num_steps: int) -> list[int] | list[float]:
        """Return t of every network evaluation of a generator that starts at t_init."""
        raise NotImplementedError

    def network_time(self, t: Tensor) -> Tensor:
        """Convert t to the time input of the network."""
        return t

    def add_noise(self, x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """Return x_t = alpha_t x_0 + sigma_t eps, (B, C, H, W)."""
        return self.alpha(t) * x0 + self.sigma(t) * eps


class VPSchedule(Schedule):
    """The discrete DDPM schedule, alpha_t^2 + sigma_t^2 = 1, of integer t (arXiv 2406.01561, section 2)."""

    def __init__(self, alphas_cumprod: Tensor):
        """Compute the tables in float64.

        Args:
            alphas_cumprod: abar_t for t = 0..T-1, (T,) in [0, 1], not increasing.

        Raises:
            ValueError: another shape, range or order.
        """
        super().__init__()
        abar = alphas_cumprod.double()
        if abar.ndim != 1 or not ((abar >= 0) & (abar <= 1)).all() or not (abar.diff() <= 0).all():
            raise ValueError("alphas_cumprod: expected values in [0, 1] that never increase with t")
        # float32 would lose the digits of 1 - abar at small t
        self.register_buffer("_alpha", abar.sqrt().float(), persistent=False)
        self.register_buffer("_sigma", (1 - abar).sqrt().float(), persistent=False)
        self.register_buffer("_snr", (abar / (1 - abar)).float(), persistent=False)

    def __len__(self) -> int:
        return len(self._alpha)

    def alpha(self, t: Tensor) -> Tensor:
        """Return sqrt(abar_t)."""
        return self._alpha[t].view(-1, 1, 1, 1)

    def sigma(self, t: Tensor) -> Tensor:
        """Return sqrt(1 - abar_t)."""
        return self._sigma[t].view(-1, 1, 1, 1)

    def fake_weight(self, t: Tensor) -> Tensor:
        """Return SNR(t) = alpha^2 / sigma^2, which turns the x_0 error into the epsilon-prediction error."""
        return self._snr[t].view(-1, 1, 1, 1)

    def draw(self, stream: torch.Generator, batch: int, low: int, high: int) -> Tensor:
        """Draw t (B,) int64 uniformly from low..high-1."""
        return torch.randint(low, high, (batch,), generator=stream)

    def steps(self, t_init: int, num_steps: int) -> list[int]:
        """Return t_i = floor(t_init (1 - i / n)) for i = 0..n-1, in exact integer arithmetic."""
        return [t_init * (num_steps - i) // num_steps for i in range(num_steps)]


class FlowSchedule(Schedule):
    """The straight path of flow matching, x_t = (1 - t) x_0 + t eps with t in [0, 1] (arXiv 2403.03206, equation 4).

    The generator starts at t = 1 from noise alone. No formula divides by alpha, which is 0 there.

    Args:
        shift: s of a grid's noise levels, u -> s u / (1 + (s - 1) u), which spends more steps at high noise.
        last_time: the network's time input at t = 1.
    """

    limits = (1, 1000)
    LOCATION, SCALE = math.log(2), 1.6  # of the logit of t in training, as SiD-DiT draws it

    def __init__(self, shift: float = 1.0, last_time: float = 1000):
        super().__init__()
        self.shift, self.last_time = shift, last_time

    def alpha(self, t: Tensor) -> Tensor:
        """Return 1 - t."""
        return (1 - t).view(-1, 1, 1, 1)

    def sigma(self, t: Tensor) -> Tensor:
        """Return t."""
        return t.view(-1, 1, 1, 1)

    def fake_weight(self, t: Tensor) -> Tensor:
        """Return 1 / t^2, which turns the x_0 error into the error of the velocity eps - x_0."""
        return 1 / self.sigma(t) ** 2

    def draw(self, stream: torch.Generator, batch: int, low: int, high: int) -> Tensor:
        """Draw t (B,) float32 from a logit-normal distribution, clamped to [low, high] / 1000."""
        t = torch.sigmoid(self.SCALE * torch.randn(batch, generator=stream) + self.LOCATION)
        return t.clamp(low / 1000, high / 1000)

    def steps(self, t_init: int, num_steps: int) -> list[float]:
        """Return the shifted grid of n equal steps from t_init; without a shift, t_i = t_init / 1000 (1 - i / n)."""
        start = t_init / 1000
        u = start / (self.shift - (self.shift - 1) * start)  # the shift takes u to t_init
        levels = [u * ((num_steps - i) / num_steps) for i in range(num_steps)]
        return [start, *(self.shift * u / (1 + (self.shift - 1) * u) for u in levels[1:])]

    def network_time(self, t: Tensor) -> Tensor:
        """Return t times `last_time`."""
        return self.last_time * t

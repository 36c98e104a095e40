"""The discrete DDPM schedule: x_t = alpha_t x_0 + sigma_t eps, alpha_t^2 + sigma_t^2 = 1 (arXiv 2406.01561, section 2)."""

from torch import Tensor, nn


class NoiseSchedule(nn.Module):
    """alpha, sigma and SNR of integer noise levels t, each (B,) int64 -> (B, 1, 1, 1) float32."""

    def __init__(self, alphas_cumprod: Tensor):
        """alphas_cumprod: abar_t for t = 0..T-1, (T,) in [0, 1], not increasing."""
        super().__init__()
        abar = alphas_cumprod.double()
        if abar.ndim != 1 or not ((abar >= 0) & (abar <= 1)).all() or not (abar.diff() <= 0).all():
            raise ValueError("expected abar_t in [0, 1] that never rises with t")
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

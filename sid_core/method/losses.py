"""The two losses of SiD-LSG and its four guidance scales (arXiv 2406.01561, sections 3.2 to 3.4).

Both losses are sums over channels and pixels, means over the batch, in float32: the score difference is a small difference of
close numbers, amplified by sigma / alpha (13 at t = 980).
"""

from dataclasses import dataclass

from torch import Tensor

WEIGHT_FLOOR = 1e-5  # of the mean |x_g - f_teacher|, as published


@dataclass(frozen=True)
class Guidance:
    """The guidance scales: long-short guidance (LSG) has all equal and above 1; 1 everywhere is no guidance."""

    fake_train: float  # kappa_1, while the fake score is trained
    fake_eval: float  # kappa_2 = kappa_3, of the fake score in the generator's loss
    teacher: float  # kappa_4, of the teacher


def fake_score_loss(x0_hat: Tensor, x_g: Tensor, snr: Tensor) -> Tensor:
    """SNR(t) |f_psi(x_t) - x_g|^2: the eps error in x_0 form, right for epsilon and v prediction alike.

    Args:
        x0_hat: the fake score's (guided) estimate (B, C, H, W).
        x_g: the generator's sample it should recover, without gradient.
        snr: alpha_t^2 / sigma_t^2 (B, 1, 1, 1).
    """
    return (snr * (x0_hat - x_g) ** 2).sum(dim=(1, 2, 3)).mean()


def generator_loss(x_g: Tensor, f_teacher: Tensor, f_fake: Tensor, alpha: float = 1.0) -> Tensor:
    """w [(1 - a) d^2 + d (f_fake - x_g)] with d = f_teacher - f_fake; equals the published d [(f_teacher - x_g) - a d].

    w = 1 / mean |x_g - f_teacher| per sample carries no gradient. Gradient flows to x_g directly and through both scores.

    Args:
        x_g: the generator's sample (B, C, H, W).
        f_teacher: the teacher's guided estimate of it from x_t.
        f_fake: the fake score's guided estimate.
        alpha: a of the paper; 1 in the published LSG runs.
    """
    d = f_teacher - f_fake
    w = 1 / (x_g - f_teacher).detach().abs().mean(dim=(1, 2, 3), keepdim=True).clamp(min=WEIGHT_FLOOR)
    return (w * ((1 - alpha) * d**2 + d * (f_fake - x_g))).sum(dim=(1, 2, 3)).mean()

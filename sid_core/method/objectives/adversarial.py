"""Compute the losses of a Diffusion GAN whose discriminator is the fake score's encoder (SiDA, arXiv 2410.14919).

A network's logits are a map or a vector for each noisy sample, (B, ...); losses are means over it, times the C H W
elements of a latent, to which the scores' losses are sums.
"""

from typing import Protocol

import torch.nn.functional as F
from torch import Tensor

CLAMP = 10  # of logits in the discriminator's loss: beyond it a sample has no gradient
SHARE = 0.5  # of each of the generator's two losses


class Adversarial(Protocol):
    """The settings of the GAN."""

    weight: float  # lambda of the generator's loss
    discriminator_weight: float  # of L_D beside the fake score's loss
    start_nimg: int  # images seen by the generator when its loss starts; the discriminator learns from the first


def discriminator_loss(real: Tensor, fake: Tensor, elements: int) -> Tensor:
    """Return L_D = 1/2 [BCE(clamp(real), 1) + BCE(clamp(fake), 0)] C H W from logits with the same t and noise."""
    real, fake = real.clamp(-CLAMP, CLAMP), fake.clamp(-CLAMP, CLAMP)
    return (F.softplus(-real).mean() + F.softplus(fake).mean()) / 2 * elements


def adversarial_loss(fake: Tensor, weight: Tensor, elements: int) -> Tensor:
    """Return L_G / lambda = BCE(fake, 1) w C H W from logits (B, ...) with gradient and `sample_weight` w."""
    return (F.softplus(-fake).flatten(1).mean(dim=1) * weight.flatten()).mean() * elements


def logit_metrics(real: Tensor, fake: Tensor) -> dict[str, Tensor]:
    """Return the gap of the mean logits, and the fraction of logits on the right side of 0 (0.5: no discrimination)."""
    accuracy = ((real > 0).float().mean() + (fake < 0).float().mean()) / 2
    return {"logit_gap": (real.mean() - fake.mean()).detach(), "discriminator_accuracy": accuracy}

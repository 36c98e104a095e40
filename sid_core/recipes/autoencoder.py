"""The VAE: 32 x 32 images to 8 x 8 latents and back. It never sees the network that evaluates the experiment."""

from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import l1_loss

from ..data.shapes.scenes import IMAGE_SIZE
from ..models.build import new_vae
from .common import Training, batches, to_signed
from .settings import AutoencoderSettings

SCALED_ON = 1024  # training images that fix the scaling factor


def train_autoencoder(settings: AutoencoderSettings, seed: int, out: Path) -> None:
    """Train the VAE and save it to `out` as diffusers does, with scaling_factor making its latents' std 1."""
    torch.manual_seed(seed)
    vae = new_vae(settings.channels, settings.latent_channels, IMAGE_SIZE)
    training = Training(vae, settings.steps, settings.learning_rate, "vae")
    stream = batches(settings.batch)
    for _ in range(settings.steps):
        images = to_signed(next(stream)[0])
        posterior = vae.encode(images).latent_dist
        decoded = vae.decode(posterior.sample()).sample
        kl = -0.5 * (1 + posterior.logvar - posterior.mean**2 - posterior.var).mean()
        training.update(reconstruction_loss(decoded, images) + settings.kl_weight * kl)
    product = training.average
    with torch.no_grad():
        latents = product.encode(to_signed(next(batches(SCALED_ON))[0])).latent_dist.sample()
    product.register_to_config(scaling_factor=1 / latents.std().item())
    product.save_pretrained(out)


def reconstruction_loss(decoded: Tensor, images: Tensor) -> Tensor:
    """Mean absolute error of the pixels and of their differences to the right and below, which keeps edges sharp."""
    loss = l1_loss(decoded, images)
    for axis in (2, 3):
        loss = loss + l1_loss(decoded.diff(dim=axis), images.diff(dim=axis))
    return loss

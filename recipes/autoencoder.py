"""Train the VAE: 32 x 32 images to 8 x 8 latents and back."""

from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import l1_loss

from sid_core.data.shapes.scenes import IMAGE_SIZE

from .common import Training, batches, to_signed
from .networks import new_vae
from .settings import AutoencoderSettings

SCALED_ON = 1024  # training images that fix the scaling factor


def train_autoencoder(settings: AutoencoderSettings, seed: int, folder: Path) -> None:
    """Train the VAE and save it to teacher/vae in diffusers' layout, with a scaling_factor that makes its latents' std 1."""
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
    product.save_pretrained(folder / "teacher" / "vae")


def reconstruction_loss(decoded: Tensor, images: Tensor) -> Tensor:
    """Add the mean absolute errors of the pixels and of their differences to the right and below, which keeps edges sharp."""
    loss = l1_loss(decoded, images)
    for axis in (2, 3):
        loss = loss + l1_loss(decoded.diff(dim=axis), images.diff(dim=axis))
    return loss

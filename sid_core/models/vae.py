"""Images to latents and back: the teacher's VAE with its scaling factor inside, so that nobody else multiplies by it."""

from pathlib import Path

import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn

from .teacher import load_component


class ImageCodec(nn.Module):
    """The frozen VAE. Images are (B, 3, H, W) float32 in [-1, 1]; latents are scaled to about unit variance."""

    def __init__(self, vae: AutoencoderKL):
        super().__init__()
        self.vae = vae.eval().requires_grad_(False)

    @classmethod
    def from_directory(cls, folder: Path) -> "ImageCodec":
        """Load `vae` of a teacher directory."""
        return cls(load_component(AutoencoderKL, Path(folder) / "vae"))

    @property
    def latent_channels(self) -> int:
        return self.vae.config.latent_channels

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Scaled latents (B, C, h, w) to images; values may leave [-1, 1] a little."""
        return self.vae.decode(latents.to(self.vae.dtype) / self.vae.config.scaling_factor).sample.float()

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Images to scaled latents, the mean of the posterior (no noise)."""
        return self.vae.encode(images.to(self.vae.dtype)).latent_dist.mean.float() * self.vae.config.scaling_factor

"""Images to latents and back: the teacher's VAE with its scaling factor inside, so that nobody else multiplies by it."""

from collections.abc import Sequence
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from torch import Tensor, cat, nn

from .components import load_component

AT_ONCE = 1  # images decoded together beside a training, which fills a GPU's memory


class ImageCodec(nn.Module):
    """The frozen VAE. Images are (B, 3, H, W) float32 in [-1, 1]; latents are scaled to about unit variance.

    Args:
        at_once: images that it takes at a time, to save memory (its largest maps have the size of the image); None: all.
    """

    def __init__(self, vae: AutoencoderKL, at_once: int | None = None):
        super().__init__()
        self.vae, self.at_once = vae.eval().requires_grad_(False), at_once

    @classmethod
    def from_directory(cls, folder: Path, at_once: int | None = None) -> "ImageCodec":
        """Load `vae` of a teacher directory."""
        return cls(load_component(AutoencoderKL, Path(folder) / "vae"), at_once)

    @property
    def latent_channels(self) -> int:
        return self.vae.config.latent_channels

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Scaled latents (B, C, h, w) to images; values may leave [-1, 1] a little."""
        scaled = (latents / self.vae.config.scaling_factor).to(self.vae.dtype)
        return cat([self.vae.decode(part).sample.float() for part in self._parts(scaled)])

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Images to scaled latents, the mean of the posterior (no noise)."""
        parts = self._parts(images.to(self.vae.dtype))
        return cat([self.vae.encode(part).latent_dist.mean.float() for part in parts]) * self.vae.config.scaling_factor

    def _parts(self, batch: Tensor) -> Sequence[Tensor]:
        return batch.split(self.at_once or len(batch))

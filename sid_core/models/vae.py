"""Encode images to latents and decode them, with the VAE's scaling and shift applied here and nowhere else."""

from collections.abc import Sequence
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from torch import Tensor, cat, nn

from ..storage.files import read_json
from .components import load_component

AT_ONCE = 1  # images decoded together during training, which fills the GPU's memory


def pixels_per_latent(folder: Path) -> int:
    """Return the side of an image over the side of its latents, for a teacher directory."""
    vae = read_json(Path(folder) / "vae" / "config.json")
    return 2 ** (len(vae.get("block_out_channels") or vae["encoder_block_out_channels"]) - 1)


class ImageCodec(nn.Module):
    """The frozen VAE. Images are (B, 3, H, W) float32 in [-1, 1]; latents are scaled to about unit variance.

    Args:
        at_once: images evaluated at a time, to save memory: feature maps have the size of the image. None: all.
        float32: whether `devices.place` keeps it in float32, with any precision of the other networks.
    """

    def __init__(self, vae: AutoencoderKL, at_once: int | None = None, float32: bool = False):
        super().__init__()
        self.vae, self.at_once, self.float32 = vae.eval().requires_grad_(False), at_once, float32

    @classmethod
    def from_directory(cls, folder: Path, at_once: int | None = None) -> "ImageCodec":
        """Load `vae` of a teacher directory."""
        return cls(load_component(AutoencoderKL, Path(folder) / "vae"), at_once)

    @property
    def shift(self) -> float:
        """Return the mean of the VAE's own latents, which scaled ones do not have; 0 for Stable Diffusion and SDXL."""
        return self.vae.config.get("shift_factor") or 0.0

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Decode scaled latents (B, C, h, w) to images, whose values may slightly exceed [-1, 1]."""
        scaled = (latents / self.vae.config.scaling_factor + self.shift).to(self.vae.dtype)
        return cat([self.vae.decode(part).sample.float() for part in self._parts(scaled)])

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Encode images to scaled latents (B, C, h, w), the mean of the posterior without noise."""
        parts = self._parts(images.to(self.vae.dtype))
        encoded = (self.vae.encode(part) for part in parts)
        # SANA's autoencoder has no distribution of latents
        means = cat([(one.latent if "latent" in one else one.latent_dist.mean).float() for one in encoded])
        return (means - self.shift) * self.vae.config.scaling_factor

    def _parts(self, batch: Tensor) -> Sequence[Tensor]:
        return batch.split(self.at_once or len(batch))

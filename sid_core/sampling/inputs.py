"""Prepare the inputs of samples by index (captions, embeddings, noise, real images), and evaluate networks in blocks.

Seeds alone do not make an image independent of its batch: convolutions and matrix products round differently at every
batch size (conv_in of a small UNet at batch 1 and 8: 7e-7 apart), and truncation to 8 bits can turn that into another
pixel. So networks always evaluate blocks of one size, aligned to multiples of it; samples of the first and last block
outside of the shard are computed and dropped. Bits are then equal for any shard and batch, on one machine, device,
dtype and number of threads.

Noise is drawn on the CPU wherever the networks run: a GPU's random stream differs. x_0 and images are float32.
"""

from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor

from ..cluster.machine import device
from ..data.images import dequantise
from ..data.shapes import scenes
from ..errors import UserError
from ..method.randomness import random_stream
from ..method.schedule import NOISE_LEVELS
from ..models.backbones import Backbone
from ..models.conditioning import Conditioning, PromptSet
from ..models.devices import place
from ..models.embeddings import StoredPrompts
from ..models.teacher import latent_shape, load_backbone, load_image_codec, load_text_encoder, teacher_sha256
from ..storage.files import read_lines

if TYPE_CHECKING:
    from ..config import Sampling

Rows = TypeVar("Rows", Tensor, Conditioning)

# 64 is fastest on a CPU for the embedded networks (the UNet takes 0.50 ms an image, 0.83 in blocks of 16, 1.1 in blocks
# of 8); above 32 x 32 latents blocks shrink, to 16 images of 512 px
LARGEST_BLOCK = 64
BLOCK_PIXELS = 64 * 32 * 32  # of the latents
NOISE_DEVICE = "cpu"


def block_size(latent_shape: tuple[int, int, int]) -> int:
    """Return the samples of a block; it depends on the teacher's latents alone."""
    _, height, width = latent_shape
    return max(1, min(LARGEST_BLOCK, BLOCK_PIXELS // (height * width)))


class Inputs:
    """Inputs of samples: captions and their embeddings, noise, real images, the teacher and its VAE.

    Where the number of captions is no multiple of the block, the last block is filled with the first captions.
    """

    def __init__(self, sampling: "Sampling", teacher: Path, captions: Path, embeddings: Path | None = None):
        self.sampling, self._folder, self.device = sampling, teacher, device()
        self.captions = read_lines(captions, "caption")
        self.teacher_sha256 = teacher_sha256(teacher)
        self.codec = place(load_image_codec(teacher), sampling.precision)
        if embeddings:
            self._prompts = StoredPrompts(embeddings / "evaluation", self.captions, teacher)
        else:
            self._prompts = PromptSet(place(load_text_encoder(teacher), sampling.precision), self.captions)
        self._latent_shape = latent_shape(teacher)
        self.block = block_size(self._latent_shape)

    @cached_property
    def teacher(self) -> Backbone:
        """Load the teacher's network; samples of a generator need it for the epsilon-prediction error alone."""
        return place(load_backbone(self._folder), self.sampling.precision)

    @property
    def batch(self) -> int:
        """Return `sampling.batch` rounded up to a multiple of the block."""
        return -(-self.sampling.batch // self.block) * self.block

    def batches(self, start: int, stop: int) -> Iterator[Tensor]:
        """Yield the indices of all blocks that overlap [start, stop), in tensors (batch,)."""
        first, last = start // self.block * self.block, -(-stop // self.block) * self.block
        yield from torch.arange(first, last).split(self.batch)

    def by_block(self, network: Callable[..., Rows], *inputs: Tensor | Conditioning) -> Rows:
        """Evaluate a network on its inputs block by block, and join the results."""
        assert len(inputs[0]) % self.block == 0, f"{len(inputs[0])} rows: expected whole blocks of {self.block}"
        blocks = zip(*(tensor.split(self.block) for tensor in inputs), strict=True)
        results = [network(*block) for block in blocks]
        return Conditioning.cat(results) if isinstance(results[0], Conditioning) else torch.cat(results)

    @property
    def empty_prompt(self) -> Conditioning:
        """Return the embedding of the empty prompt, one row."""
        return self._prompts.empty

    def prompts(self, indices: Tensor) -> Conditioning:
        """Return the embeddings of the samples' captions, one row a sample."""
        return self.by_block(self._prompts, indices % len(self.captions))

    def seed(self, index: int) -> int:
        """Return the seed of a sample, from which all its random values are drawn."""
        return self.sampling.seed + index

    def noises(self, indices: Tensor, count: int) -> Tensor:
        """Draw standard normal noise (B, count, C, h, w); each sample has a random stream of its own."""
        noises = torch.empty(len(indices), count, *self._latent_shape)
        for row, index in enumerate(indices.tolist()):
            generator = torch.Generator(NOISE_DEVICE).manual_seed(self.seed(index))
            for noise in noises[row]:
                noise.copy_(torch.randn(self._latent_shape, generator=generator))
        return noises.to(self.device)

    def real_images(self, split: str, indices: Tensor) -> Tensor:
        """Render images (B, 3, H, W) float32 in [-1, 1] of the captions; a UserError names one of another split."""
        first, count = int(indices[0]), len(indices)
        images, captions = scenes.draw(split, count, first)
        for index, caption in zip(indices.tolist(), captions, strict=True):
            if index < len(self.captions) and self.captions[index] != caption:
                raise UserError(
                    f"caption {index + 1}={self.captions[index]!r}: expected {caption!r} of the {split} split. "
                    "Fix: prepare the prompts again, or set baselines.vae and baselines.real to false"
                )
        return dequantise(images).to(self.device)

    def eps_errors(self, latents: Tensor, indices: Tensor) -> list[float]:
        """Return the teacher's epsilon-prediction error on latents (B, C, h, w), B values, conditional (kappa = 1).

        It is |eps_hat - eps|^2, a mean over C, h, w, at one t and one eps per sample. Residual noise in a generator's
        samples raises it, even where a feature network is insensitive to it.
        """
        t, eps = (
            torch.stack(parts).to(self.device)
            for parts in zip(*(self._probe(i, latents.shape[1:]) for i in indices.tolist()), strict=True)
        )
        x_t = self.teacher.schedule.add_noise(latents, eps, t)
        eps_hat = self.teacher.eps(self.by_block(self.teacher, x_t, t, self.prompts(indices)), x_t, t)
        return (eps_hat - eps).square().mean(dim=(1, 2, 3)).tolist()

    def _probe(self, index: int, shape: torch.Size) -> tuple[Tensor, Tensor]:
        """Draw t () and eps (C, h, w) from a random stream of their own: the sample's stream would give eps = z."""
        stream = random_stream("eps error", self.seed(index))
        (t,) = self.teacher.schedule.draw(stream, 1, *NOISE_LEVELS)
        return t, torch.randn(shape, generator=stream)

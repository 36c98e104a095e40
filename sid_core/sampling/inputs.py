"""What samples are made from, by index: captions, embeddings, noise, real images; and the block in which networks see them.

Seeds alone do not make an image independent of its batch: convolutions and matrix products round differently at every batch
size (conv_in of a small UNet at batch 1 and 8: 7e-7 apart), and where a value lies at the edge of a level, truncation turns
that into another pixel. So networks always see a block of the same size, which starts at a multiple of it; what a shard does
not want of its first and last block is computed and dropped. The blocks are the same whatever is asked for, hence the bits
are, on one machine, device, precision and number of threads.

Noise is drawn on the CPU wherever the networks run: a GPU's stream is another one. x_0 and images come back as float32.
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
from ..method.randomness import generator
from ..models.backbones import Backbone
from ..models.conditioning import Conditioning, PromptSet
from ..models.devices import place
from ..models.teacher import latent_shape, load_backbone, load_image_codec, load_text_encoder, teacher_sha256
from ..storage.files import read_lines

if TYPE_CHECKING:
    from ..config import Sampling

Rows = TypeVar("Rows", Tensor, Conditioning)

# 64 is fastest on a CPU for the embedded networks (the UNet takes 0.50 ms an image, 0.83 in blocks of 16, 1.1 in blocks of 8);
# above 32 x 32 latents blocks shrink, so that 512 px images come 16 at a time.
LARGEST_BLOCK = 64
BLOCK_PIXELS = 64 * 32 * 32  # of the latents
NOISE_DEVICE = "cpu"
EPS_LEVELS = (20, 980)  # noise levels of the eps error: those the method trains at


def block_size(latent_shape: tuple[int, int, int]) -> int:
    """Samples that networks see at once; depends on the teacher and on nothing else."""
    _, height, width = latent_shape
    return max(1, min(LARGEST_BLOCK, BLOCK_PIXELS // (height * width)))


class Inputs:
    """What samples are made from: captions and their embeddings, noise, real images, the teacher and its VAE.

    The last block reaches past the last caption where their number is no multiple of the block; captions start over there.
    """

    def __init__(self, sampling: "Sampling", teacher: Path, captions: Path):
        self.sampling, self._folder, self.device = sampling, teacher, device()
        self.captions = read_lines(captions, "caption")
        self.teacher_sha256 = teacher_sha256(teacher)
        self.codec = place(load_image_codec(teacher, sampling.vae_slicing), sampling.precision)
        encoder = place(load_text_encoder(teacher), sampling.precision)
        self._prompts = PromptSet(encoder, self.captions)
        self._latent_shape = latent_shape(teacher)
        self.block = block_size(self._latent_shape)

    @cached_property
    def teacher(self) -> Backbone:
        """The teacher's network; samples of a generator need it for their eps error alone."""
        return place(load_backbone(self._folder), self.sampling.precision)

    @property
    def batch(self) -> int:
        """`sampling.batch` rounded up to whole blocks."""
        return -(-self.sampling.batch // self.block) * self.block

    def batches(self, start: int, stop: int) -> Iterator[Tensor]:
        """Indices of the blocks that hold start .. stop, in tensors of `batch`."""
        first, last = start // self.block * self.block, -(-stop // self.block) * self.block
        yield from torch.arange(first, last).split(self.batch)

    def by_block(self, network: Callable[..., Rows], *inputs: Tensor | Conditioning) -> Rows:
        """A network on one block of its inputs after the other."""
        assert len(inputs[0]) % self.block == 0, f"{len(inputs[0])} rows: expected whole blocks of {self.block}"
        blocks = zip(*(tensor.split(self.block) for tensor in inputs), strict=True)
        results = [network(*block) for block in blocks]
        return Conditioning.cat(results) if isinstance(results[0], Conditioning) else torch.cat(results)

    @property
    def empty_prompt(self) -> Conditioning:
        """The empty prompt, one row."""
        return self._prompts.empty

    def prompts(self, indices: Tensor) -> Conditioning:
        """Embeddings of the samples' captions."""
        return self.by_block(self._prompts, indices % len(self.captions))

    def seed(self, index: int) -> int:
        """Return the seed of a sample: all that is random about it follows from it."""
        return self.sampling.seed + index

    def noises(self, indices: Tensor, count: int) -> Tensor:
        """Standard normal (B, count, C, h, w); each sample draws its `count` noises in order from a generator of its own."""
        noises = torch.empty(len(indices), count, *self._latent_shape)
        for row, index in enumerate(indices.tolist()):
            generator = torch.Generator(NOISE_DEVICE).manual_seed(self.seed(index))
            for noise in noises[row]:
                noise.copy_(torch.randn(self._latent_shape, generator=generator))
        return noises.to(self.device)

    def real_images(self, split: str, indices: Tensor) -> Tensor:
        """The images (B, 3, H, W) float32 in [-1, 1] that the captions were written for.

        Raises:
            UserError: the caption file holds other captions than the split.
        """
        first, count = int(indices[0]), len(indices)
        images, captions = scenes.draw(split, count, first)
        for index, caption in zip(indices.tolist(), captions, strict=True):
            if index < len(self.captions) and self.captions[index] != caption:
                raise UserError(
                    f"caption {index + 1} is {self.captions[index]!r}, the {split} image has {caption!r}; "
                    "prepare the prompts again, or set baselines.vae and baselines.real to false"
                )
        return dequantise(images).to(self.device)

    def eps_errors(self, latents: Tensor, indices: Tensor) -> list[float]:
        """The teacher's own error |eps_hat - eps|^2 on samples (B, C, h, w), a mean over C, h, w, conditional (kappa = 1).

        Each sample gets one t and one eps of its own. Noise that a generator leaves in its samples is noise the teacher did
        not expect there: a feature network may forgive it, this does not.
        """
        t, eps = (
            torch.stack(parts).to(self.device)
            for parts in zip(*(self._probe(i, latents.shape[1:]) for i in indices.tolist()), strict=True)
        )
        x_t = self.teacher.schedule.add_noise(latents, eps, t)
        eps_hat = self.teacher.eps(self.by_block(self.teacher, x_t, t, self.prompts(indices)), x_t, t)
        return (eps_hat - eps).square().mean(dim=(1, 2, 3)).tolist()

    def _probe(self, index: int, shape: torch.Size) -> tuple[Tensor, Tensor]:
        """Draw t () and eps (C, h, w) of a sample's eps error from a stream of their own: the sample's would give eps = z."""
        stream = generator("eps error", self.seed(index))
        (t,) = self.teacher.schedule.draw(stream, 1, *EPS_LEVELS)
        return t, torch.randn(shape, generator=stream)

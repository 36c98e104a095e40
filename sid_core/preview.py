"""Pictures to look at: sample grids during training, and one image for a prompt. Scores use neither."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from .errors import UserError
from .evaluation.images import quantise
from .files import atomic_path
from .method import n_step
from .models.generator import load_generator
from .models.teacher import latent_shape
from .models.text import TextEncoder
from .models.vae import ImageCodec

SMALL = 128  # pixels; images of smaller sides are enlarged by a whole factor, without smoothing


def write_grid(images: Tensor, out: Path) -> None:
    """Write images (B, 3, H, W) in [-1, 1] to the PNG `out`, in rows of about sqrt(B); non-finite ones come out black."""
    tiles = quantise(images.nan_to_num(-1, -1, -1))  # (B, H, W, 3)
    columns = round(len(tiles) ** 0.5)
    rows = [np.concatenate(tiles[i : i + columns], axis=1) for i in range(0, len(tiles) - columns + 1, columns)]
    write_png(np.concatenate(rows, axis=0), out, enlarge=factor(tiles.shape[1]))


def sample(generator: Path, teacher: Path, prompt: str, seed: int, out: Path) -> None:
    """Write the image that `generator` makes of `prompt` from the noise of `seed` to the PNG `out`.

    Raises:
        UserError: a folder is missing, damaged, or belongs to another teacher.
    """
    for folder, what in ((generator, "generator"), (teacher, "teacher")):
        if not folder.is_dir():
            raise UserError(f"--{what} {folder}: no such folder; expected results/EXPERIMENT/… of a finished run")
    network, record = load_generator(generator, teacher)
    source = torch.Generator().manual_seed(seed)
    noises = [torch.randn(1, *latent_shape(teacher), generator=source) for _ in range(record["num_steps"])]
    with torch.inference_mode():
        cond = TextEncoder.from_directory(teacher).encode([prompt])
        image = ImageCodec.from_directory(teacher).decode(n_step(network, noises, record["t_init"], cond))
    pixels = quantise(image)[0]
    write_png(pixels, out, enlarge=factor(len(pixels)))


def factor(side: int) -> int:
    """By how much images of this side are enlarged."""
    return max(1, -(-SMALL // side))


def write_png(pixels: np.ndarray, out: Path, enlarge: int) -> None:
    """Write uint8 pixels (H, W, 3) enlarged by a whole factor."""
    pixels = pixels.repeat(enlarge, axis=0).repeat(enlarge, axis=1)
    with atomic_path(out) as temporary:
        Image.fromarray(pixels).save(temporary, format="PNG")

"""Write images for people: sample grids of training, and enlarged samples. Scores use neither."""

import io
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from ..data.images import quantise
from ..storage.files import atomic_path

SMALL = 128  # pixels: images with smaller sides are enlarged by a whole factor, without smoothing


def write_grid(images: Tensor, out: Path) -> None:
    """Write images (B, 3, H, W) in [-1, 1] to the PNG `out`, in rows of about sqrt(B); non-finite values become black."""
    tiles = quantise(images.nan_to_num(-1, -1, -1))  # (B, H, W, 3)
    columns = round(len(tiles) ** 0.5)
    rows = [np.concatenate(tiles[i : i + columns], axis=1) for i in range(0, len(tiles) - columns + 1, columns)]
    with atomic_path(out) as temporary:
        temporary.write_bytes(to_png(np.concatenate(rows, axis=0), enlarge=enlargement(tiles.shape[1])))


def enlargement(side: int) -> int:
    """Return the factor by which images of `side` pixels are enlarged."""
    return max(1, -(-SMALL // side))


def to_png(pixels: np.ndarray, enlarge: int) -> bytes:
    """Encode uint8 pixels (H, W, 3), enlarged by a whole factor, as PNG."""
    buffer = io.BytesIO()
    Image.fromarray(pixels.repeat(enlarge, axis=0).repeat(enlarge, axis=1)).save(buffer, format="PNG")
    return buffer.getvalue()

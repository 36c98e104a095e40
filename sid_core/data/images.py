"""Quantise, crop, resize, encode and decode images between network and metric.

An image is uint8 (H, W, 3) unless stated otherwise. The published protocol (GigaGAN's evaluation of COCO-2014) crops to the short side, shrinks with PIL's LANCZOS to 8 bits, and
enlarges for the feature network as clean-fid does (arXiv 2104.11222): per channel, in float, with PIL's bicubic filter.
"""

import hashlib
import io

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from ..errors import UserError

QUANTISE = "x * 127.5 + 128 clipped to [0, 255], truncated"


def quantise(images: Tensor) -> np.ndarray:
    """Quantise finite network output (B, 3, H, W) float in [-1, 1] to uint8 (B, H, W, 3)."""
    levels = (images * 127.5 + 128).clamp(0, 255).to(torch.uint8)
    return levels.permute(0, 2, 3, 1).contiguous().cpu().numpy()


def dequantise(images: np.ndarray) -> Tensor:
    """Convert uint8 images (B, H, W, 3) to VAE input (B, 3, H, W) float32 in [-1, 1]; `quantise` gives equal images."""
    # diffusers' scale: level k is the middle of the interval that quantise truncates to k
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1


def centre_crop(image: np.ndarray) -> np.ndarray:
    """Crop to the central square; offsets are torchvision's, rounded half to even, not floored."""
    height, width = image.shape[:2]
    side = min(height, width)
    top, left = round((height - side) / 2), round((width - side) / 2)
    return image[top : top + side, left : left + side]


def shrink(image: np.ndarray, side: int) -> np.ndarray:
    """Crop to the central square and resize to side x side with PIL's LANCZOS filter, in 8 bits."""
    return np.asarray(Image.fromarray(centre_crop(image)).resize((side, side), Image.Resampling.LANCZOS))


def enlarge(image: np.ndarray, side: int) -> np.ndarray:
    """Resize with clean-fid's `clean` mode to (side, side, 3) float32 in [0, 255], not rounded."""
    from cleanfid.resize import make_resizer  # imports all of clean-fid, which generation does not need

    return make_resizer("PIL", False, "bicubic", (side, side))(image)


def pixel_sha256(image: np.ndarray) -> str:
    """Return the hex SHA-256 of the pixels, which, unlike PNG bytes, do not depend on the encoder."""
    return hashlib.sha256(np.ascontiguousarray(image)).hexdigest()


def encode_png(image: np.ndarray, level: int) -> bytes:
    """Encode an image as PNG bytes with zlib compression `level`, 0 to 9."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="PNG", compress_level=level)
    return buffer.getvalue()


def to_rgb(picture: Image.Image, name: str) -> np.ndarray:
    """Convert a Pillow image of any mode to (H, W, 3) uint8; error messages call it `name`.

    16-bit values are reduced to their high byte: grey here, colours by Pillow. A fully opaque alpha channel is dropped.

    Raises:
        UserError: pixels are transparent, so that their colour is undefined, or have a mode whose white level is unknown.
    """
    if picture.has_transparency_data and not _is_opaque(picture):
        raise UserError(
            f"{name}: has transparent pixels, expected an opaque image. Fix: put it on a background, for example "
            "magick mogrify -background white -alpha remove -alpha off IMAGE"
        )
    if picture.mode.startswith("I;16"):
        return np.repeat((np.asarray(picture) >> 8).astype(np.uint8)[:, :, None], 3, axis=2)
    if picture.mode in ("I", "F"):  # convert would clip at 255
        raise UserError(f"{name}: has pixels of mode {picture.mode}, expected 8 or 16 bits. Fix: convert it to 8 bits")
    return np.asarray(picture if picture.mode == "RGB" else picture.convert("RGB"))


def _is_opaque(picture: Image.Image) -> bool:
    """Return whether every pixel is opaque; False for a 16-bit transparent colour, which Pillow compares with 8-bit pixels."""
    key = picture.info.get("transparency")
    if picture.mode.startswith("I;16") or (isinstance(key, tuple) and max(key) > 255):
        return False
    return picture.convert("RGBA").getchannel("A").getextrema()[0] == 255


def decode_png(data: bytes, name: str) -> np.ndarray:
    """Decode a PNG to (H, W, 3) uint8; a UserError calls a damaged one, or one that `to_rgb` rejects, `name`."""
    try:
        with Image.open(io.BytesIO(data)) as picture:
            return to_rgb(picture, name)
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        raise UserError(f"{name}: truncated or no image ({error}). Fix: delete its file and run again") from None

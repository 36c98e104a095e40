"""Encode pairs of real images and captions once with the teacher's VAE."""

import math
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from safetensors.torch import save_file

from ..cluster.machine import device
from ..data.images import dequantise
from ..data.pool import batches
from ..data.real_images import real_pairs
from ..storage.files import atomic_path, write_manifest
from .devices import place
from .real_pairs import CAPTIONS, LATENTS, TEACHER
from .teacher import latent_shape, load_image_codec, teacher_sha256

if TYPE_CHECKING:
    from ..config import Real

PIXELS = 64 * 32 * 32  # of the latents that are encoded together: 16 images of 512 pixels


def encode_pairs(settings: "Real", out: Path, teacher: Path, workers: int = 1) -> None:
    """Write latents.safetensors (the VAE's means, scaled, float32), captions.txt and a manifest atomically to `out`.

    Raises:
        UserError: `data.real_images` rejects the source, or the teacher's VAE and latents do not fit together.
    """
    shape, sha256 = latent_shape(teacher), teacher_sha256(teacher)
    batch = max(1, PIXELS // (shape[1] * shape[2]))
    codec = place(load_image_codec(teacher, batch), "float32")
    side = codec.decode(torch.zeros(1, *shape, device=device())).shape[-1]
    count, pairs = real_pairs(settings, side, workers)
    with atomic_path(out) as folder:
        folder.mkdir()
        # a file in memory: 100,000 latents of Stable Diffusion's size take 6.6 GB
        buffer = folder / "buffer"
        latents = torch.from_file(str(buffer), shared=True, size=count * math.prod(shape), dtype=torch.float32)
        latents = latents.view(count, *shape)
        done = 0
        with open(folder / CAPTIONS, "w", encoding="utf-8", newline="\n") as captions:
            for part in batches(pairs, batch):
                images = dequantise(np.stack([image for image, _ in part]))
                latents[done : done + len(part)] = codec.encode(images.to(device())).cpu()
                captions.writelines(f"{caption}\n" for _, caption in part)
                done += len(part)
        save_file({"latents": latents}, folder / LATENTS)
        del latents
        buffer.unlink()
        write_manifest(folder, {"source": settings.source, "pairs": count, TEACHER: sha256})

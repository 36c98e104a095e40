"""Compute fid_proxy and clip_proxy during training, from a few samples of held-out captions.

They are no FID and CLIP score: a Frechet distance of few samples is far above that of many, and the captions are others.
"""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..data.images import quantise
from .features import load_features, stored
from .metrics.frechet import Gaussian, Reference
from .networks.required import Clip, Features

if TYPE_CHECKING:
    from ..config import ReferenceSettings


class Proxy:
    """Networks, reference and captions, loaded once.

    Args:
        captions: of the samples, in their order; at least 2.
        decode: latents (B, C, h, w) to images (B, 3, H, W) in [-1, 1].
    """

    def __init__(
        self,
        settings: "ReferenceSettings",
        reference: Path,
        captions: Sequence[str],
        decode: Callable[[Tensor], Tensor],
    ):
        self._settings, self._decode = settings, decode
        self._features, self._clip = Features(settings), Clip(settings)
        self._reference = Reference(Gaussian.fit(load_features(reference)[0]["features"]))
        self._texts = self._clip.texts([settings.caption_prefix + caption for caption in captions])

    def __call__(self, batches: Iterable[Tensor]) -> dict[str, float | None]:
        """Compute fid_proxy and clip_proxy of batches of latents, None where a feature is not finite."""
        features, embeddings = [], []
        for latents in batches:
            images = [stored(image, self._settings) for image in quantise(self._decode(latents).nan_to_num(-1, -1, -1))]
            features.append(self._features.rows([self._features.prepare(image) for image in images]))
            embeddings.append(self._clip.images(images))
        rows, images = torch.cat(features), torch.cat(embeddings)
        if not rows.isfinite().all():
            return {"fid_proxy": None, "clip_proxy": None}
        return {
            "fid_proxy": self._reference.distance(Gaussian.fit(rows)),
            "clip_proxy": float((images.double() * self._texts.double()).sum(1).mean()),
        }

"""The two networks that look at images: a feature network for FID and its kin, and an open_clip model.

They run on a GPU where there is one, in float32 or under autocast in 16 bits. What identifies them in a protocol are
the files they are made of: weights, config, tokenizer.
"""

import json
import pickle
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError
from torch import Tensor
from torch.nn.functional import normalize

from ...cluster.machine import device
from ...errors import UserError
from ...models.devices import DTYPES, arithmetic
from .feature_network import load_feature_network
from .weights import clip_weights, feature_weights

if TYPE_CHECKING:
    from ...config import FeatureSettings

TEXTS = 256  # captions encoded at once
# what open_clip and the readers under it raise over folders they cannot make a model of; a refused pickle is one
UNLOADABLE = (
    *(OSError, ValueError, RuntimeError, KeyError, TypeError, EOFError),
    *(SafetensorError, pickle.UnpicklingError, json.JSONDecodeError),
)


def _published_levels() -> np.ndarray:
    """What each of 256 levels becomes in the published script, which maps to [-1, 1] in float32 and back, truncating."""
    levels = torch.arange(256, dtype=torch.float32) / 255
    return ((((levels - 0.5) / 0.5) * 0.5 + 0.5) * 255).to(torch.uint8).numpy()


PUBLISHED_LEVELS = _published_levels()


class Features:
    """The feature network, and what the protocol calls it."""

    def __init__(self, setting: str, sha256: str | None = None, precision: str = "float32"):
        path, _, self.identity = feature_weights(setting, sha256)
        self._device, self._dtype = device(), DTYPES[precision]
        self._network = load_feature_network(path).to(self._device)

    @classmethod
    def of(cls, settings: "FeatureSettings") -> "Features":
        """The one that the settings name."""
        return cls(settings.feature_network, settings.feature_network_sha256, settings.precision)

    @torch.inference_mode()
    def __call__(self, images: Sequence[np.ndarray]) -> Tensor:
        """Features (B, D) float32 of images (H, W, 3), 0 to 255, uint8 or float32.

        Raises:
            UserError: images of another size than the network takes.
        """
        size = self._network.image_size
        if images[0].shape[:2] != (size, size):
            raise UserError(
                f"evaluate.feature_size: the feature network takes {size} x {size}, it is given "
                f"{images[0].shape[0]} x {images[0].shape[1]}; set feature_size: {size}"
            )
        batch = torch.from_numpy(np.stack(images)).to(self._device).permute(0, 3, 1, 2).float()
        with arithmetic(self._device, self._dtype):
            return self._network(batch).float().cpu()


class Clip:
    """The open_clip model, and what the protocol calls it."""

    def __init__(
        self,
        setting: str,
        revision: str | None = None,
        sha256: str | None = None,
        strict: bool = False,
        precision: str = "float32",
    ):
        import open_clip

        path, _, self.identity = clip_weights(setting, revision, sha256)
        name = f"local-dir:{path.parent}"
        self._device, self._strict, self._dtype = device(), strict, DTYPES[precision]
        try:
            # without require_pretrained, weights that are not found are random ones, silently
            model, _, self._preprocess = open_clip.create_model_and_transforms(
                name, require_pretrained=True, precision="fp32", device=self._device
            )
            self._tokenize = open_clip.get_tokenizer(name)
        except UNLOADABLE as error:
            reason = " ".join(str(error).split())[:300]
            raise UserError(f"evaluate.clip={setting}: {path.parent} cannot be loaded by open_clip: {reason}") from None
        self._model = model.eval().requires_grad_(False)  # it comes in training mode

    @classmethod
    def of(cls, settings: "FeatureSettings") -> "Clip":
        """The one that the settings name."""
        return cls(
            settings.clip, settings.clip_revision, settings.clip_sha256, settings.clip_strict, settings.precision
        )

    def images(self, images: Sequence[np.ndarray]) -> Tensor:
        """Embeddings (B, E) float32 of unit length, of images (H, W, 3) uint8."""
        return self.encode([self.prepare(image) for image in images])

    def prepare(self, image: np.ndarray) -> Tensor:
        """An image (H, W, 3) uint8 as the model takes it, (3, S, S) float32; may be called from several threads."""
        return self._preprocess(Image.fromarray(PUBLISHED_LEVELS[image] if self._strict else image))

    @torch.inference_mode()
    def encode(self, prepared: Sequence[Tensor]) -> Tensor:
        """Embeddings (B, E) float32 of unit length, of what `prepare` returned."""
        batch = torch.stack(list(prepared)).to(self._device)
        with arithmetic(self._device, self._dtype):
            return normalize(self._model.encode_image(batch).float(), dim=-1).cpu()

    @torch.inference_mode()
    def texts(self, texts: Sequence[str]) -> Tensor:
        """Embeddings (N, E) float32 of unit length; a text that repeats is encoded once."""
        rows = {text: row for row, text in enumerate(dict.fromkeys(texts))}
        distinct = list(rows)
        with arithmetic(self._device, self._dtype):
            encoded = [
                self._model.encode_text(self._tokenize(distinct[i : i + TEXTS]).to(self._device)).float()
                for i in range(0, len(distinct), TEXTS)
            ]
        return normalize(torch.cat(encoded), dim=-1).cpu()[torch.tensor([rows[text] for text in texts])]

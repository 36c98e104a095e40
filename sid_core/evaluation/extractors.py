"""The two networks that look at images: a feature network for FID and its kin, and an open_clip model.

Each is `embedded` or a folder; from here on nothing knows which. What identifies a network in a protocol is the sha256 of its
weight file.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from .. import shapes
from ..errors import UserError
from ..files import sha256_file
from ..models.feature_network import WEIGHTS, FeatureNetwork

CLIP_CONFIG, CLIP_WEIGHTS = "open_clip_config.json", "open_clip_model.safetensors"
TEXTS = 256  # captions encoded at once


def feature_folder(setting: str) -> Path:
    """Folder of `evaluate.feature_network`, with its files checked for existence."""
    return _folder(setting, "features", "evaluate.feature_network", ("config.json", WEIGHTS))


def clip_folder(setting: str) -> Path:
    """Folder of `evaluate.clip`, with its files checked for existence."""
    return _folder(setting, "clip", "evaluate.clip", (CLIP_CONFIG, CLIP_WEIGHTS))


def _folder(setting: str, embedded: str, key: str, files: tuple[str, ...]) -> Path:
    folder = shapes.ASSETS / embedded if setting == "embedded" else Path(setting).expanduser()
    for file in files:
        if not (folder / file).is_file():
            raise UserError(f"{key}={setting}: no file {folder / file}; expected a folder with {' and '.join(files)}")
    return folder


class Features:
    """The feature network, and what the protocol calls it."""

    def __init__(self, setting: str):
        folder = feature_folder(setting)
        self.sha256 = sha256_file(folder / WEIGHTS)
        self._network = FeatureNetwork.from_directory(folder)

    @torch.inference_mode()
    def __call__(self, images: Sequence[np.ndarray]) -> Tensor:
        """Features (B, D) float32 of images (H, W, 3), 0 to 255, uint8 or float32.

        Raises:
            UserError: images of another size than the network takes.
        """
        size = self._network.config["image_size"]
        if images[0].shape[:2] != (size, size):
            raise UserError(
                f"evaluate.feature_size: the feature network takes {size} x {size}, it is given "
                f"{images[0].shape[0]} x {images[0].shape[1]}; set feature_size: {size}"
            )
        batch = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float()
        return self._network(batch).float()


class Clip:
    """The open_clip model, and what the protocol calls it."""

    def __init__(self, setting: str):
        import open_clip

        folder = clip_folder(setting)
        name = f"local-dir:{folder}"
        self.sha256 = sha256_file(folder / CLIP_WEIGHTS)
        try:
            # without require_pretrained, weights that are not found are random ones, silently
            model, _, self._preprocess = open_clip.create_model_and_transforms(name, require_pretrained=True)
            self._tokenize = open_clip.get_tokenizer(name)
        except (OSError, ValueError, RuntimeError, KeyError, TypeError, json.JSONDecodeError) as error:
            reason = " ".join(str(error).split())[:300]
            raise UserError(f"evaluate.clip={setting}: {folder} cannot be loaded by open_clip: {reason}") from None
        self._model = model.eval().requires_grad_(False)  # it comes in training mode

    def images(self, images: Sequence[np.ndarray]) -> Tensor:
        """Embeddings (B, E) float32 of unit length, of images (H, W, 3) uint8."""
        return self.encode([self.prepare(image) for image in images])

    def prepare(self, image: np.ndarray) -> Tensor:
        """An image (H, W, 3) uint8 as the model takes it, (3, S, S) float32; may be called from several threads."""
        return self._preprocess(Image.fromarray(image))

    @torch.inference_mode()
    def encode(self, prepared: Sequence[Tensor]) -> Tensor:
        """Embeddings (B, E) float32 of unit length, of what `prepare` returned."""
        return self._model.encode_image(torch.stack(list(prepared)), normalize=True).float()

    @torch.inference_mode()
    def texts(self, texts: Sequence[str]) -> Tensor:
        """Embeddings (N, E) float32 of unit length; a text that repeats is encoded once."""
        rows = {text: row for row, text in enumerate(dict.fromkeys(texts))}
        distinct = list(rows)
        encoded = [
            self._model.encode_text(self._tokenize(distinct[i : i + TEXTS]), normalize=True).float()
            for i in range(0, len(distinct), TEXTS)
        ]
        return torch.cat(encoded)[torch.tensor([rows[text] for text in texts])]

"""Run the two networks of every protocol: an open_clip model and the feature network of FID and others.

They run on a GPU if there is one, in float32. Weights, config and tokenizer identify them in a protocol.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import normalize

from ...cluster.machine import device
from ...data.images import enlarge
from ...errors import UserError
from ...models.lean import without
from .feature_network import load_feature_network
from .loading import loading
from .weights import CLIP_CONFIG, network_weights

if TYPE_CHECKING:
    from ...config import FeatureSettings

TEXTS = 256  # captions encoded at once
# libraries of which open_clip builds some towers, and the keys of its config that ask for them
TOWERS = {"timm": "timm_model_name", "transformers": "hf_model_name"}


class Features:
    """Run the feature network."""

    column = "features"

    def __init__(self, settings: "FeatureSettings"):
        path, _, self.identity = network_weights(settings, "feature_network")
        self._side = settings.feature_size
        self._network = load_feature_network(path).to(device())

    @property
    def image_size(self) -> int:
        """Return the side of the images that the network takes."""
        return self._network.image_size

    def prepare(self, image: np.ndarray) -> np.ndarray:
        """Resize an image (H, W, 3) uint8 for the network; several threads may call it."""
        return enlarge(image, self._side) if self._side else image

    @torch.inference_mode()
    def rows(self, prepared: Sequence[np.ndarray], captions: Sequence[str] = ()) -> Tensor:
        """Compute features (B, D) float32 of images (H, W, 3), 0 to 255; a UserError names a wrong size."""
        size = self._network.image_size
        if prepared[0].shape[:2] != (size, size):
            raise UserError(
                f"evaluate.feature_size: the feature network takes {size} x {size}, got "
                f"{prepared[0].shape[0]} x {prepared[0].shape[1]}. Fix: set feature_size: {size}"
            )
        batch = torch.from_numpy(np.stack(prepared)).to(device()).permute(0, 3, 1, 2).float()
        return self._network(batch).cpu()


class Clip:
    """Run the open_clip model."""

    column = "clip_image"

    def __init__(self, settings: "FeatureSettings"):
        path, _, self.identity = network_weights(settings, "clip")
        config = (path.parent / CLIP_CONFIG).read_text(encoding="utf-8", errors="replace")
        with without(*(library for library, key in TOWERS.items() if key not in config)):
            import open_clip

        name = f"local-dir:{path.parent}"
        what = f"evaluate.clip={settings.clip.source}: {path.parent} cannot be loaded by open_clip"
        with loading(what, "get it again, or give another"):
            # without require_pretrained, missing weights are silently random
            model, _, self._preprocess = open_clip.create_model_and_transforms(
                name, require_pretrained=True, precision="fp32", device=device()
            )
            self._tokenize = open_clip.get_tokenizer(name)
        self._model = model.eval().requires_grad_(False)  # open_clip returns training mode

    def prepare(self, image: np.ndarray) -> Tensor:
        """Preprocess an image (H, W, 3) uint8 for the model, (3, S, S) float32; several threads may call it."""
        return self._preprocess(Image.fromarray(image))

    @torch.inference_mode()
    def rows(self, prepared: Sequence[Tensor], captions: Sequence[str] = ()) -> Tensor:
        """Compute embeddings (B, E) float32 of unit length from outputs of `prepare`."""
        batch = torch.stack(list(prepared)).to(device())
        return normalize(self._model.encode_image(batch), dim=-1).cpu()

    def images(self, images: Sequence[np.ndarray]) -> Tensor:
        """Compute embeddings (B, E) float32 of unit length of images (H, W, 3) uint8."""
        return self.rows([self.prepare(image) for image in images])

    @torch.inference_mode()
    def texts(self, texts: Sequence[str]) -> Tensor:
        """Compute embeddings (N, E) float32 of unit length, encoding repeated texts once."""
        places = {text: row for row, text in enumerate(dict.fromkeys(texts))}
        distinct = list(places)
        encoded = [
            self._model.encode_text(self._tokenize(distinct[i : i + TEXTS]).to(device()))
            for i in range(0, len(distinct), TEXTS)
        ]
        return normalize(torch.cat(encoded), dim=-1).cpu()[torch.tensor([places[text] for text in texts])]

"""Networks of metrics beyond the protocol: DINOv2, HPSv2.1 and PickScore. A setting that is null leaves its metric out.

They look at the 8-bit image that the protocol's networks start from, and at the caption without the protocol's prefix. What
identifies each stands in a record of its own: the protocol's hash does not change with them.
"""

import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import normalize

from ...cluster.machine import device
from ...data.images import enlarge
from ...errors import UserError
from ...models.devices import DTYPES, arithmetic
from .vision import Dinov2, ScoredClip
from .weights import DINOV2_FILES, HPS_FILES, PICKSCORE_FILES, network_weights

if TYPE_CHECKING:
    from ...config import FeatureSettings

IMAGENET_MEAN, IMAGENET_STD = np.float32([0.485, 0.456, 0.406]), np.float32([0.229, 0.224, 0.225])
DINOV2_SIDE = 224  # arXiv 2306.04675
HPS_MODEL = "ViT-H-14"  # open_clip's name of its architecture


class Extra(Protocol):
    """A network that gives every sample a row, which is stored under `column`."""

    column: str  # and the network's setting
    record: dict

    def prepare(self, image: np.ndarray) -> Tensor:
        """An image (H, W, 3) uint8 as the network takes it; may be called from several threads."""

    def rows(self, prepared: Sequence[Tensor], captions: Sequence[str]) -> Tensor:
        """(B, D) or (B,) float32."""


def extras(settings: "FeatureSettings") -> list[Extra]:
    """Those that the settings name.

    Raises:
        UserError: a file is missing, has another sha256 or holds another network.
    """
    named = (("dinov2", Dinov2Features), ("hps", Hps), ("pickscore", PickScore))
    return [kind(settings) for key, kind in named if getattr(settings, key) is not None]


class Dinov2Features:
    """Features for the Frechet distance of arXiv 2306.04675: clean-fid's bicubic to 224, the class token of torch.hub's DINOv2."""

    column = "dinov2"

    def __init__(self, settings: "FeatureSettings"):
        path, _, identity = network_weights("evaluate.dinov2", settings.dinov2, DINOV2_FILES)
        seen = f"clean-fid: PIL bicubic, float, to {DINOV2_SIDE}; positions as in torch.hub's DINOv2"
        self.record = _record(identity, settings, seen)
        self._dtype = DTYPES[settings.precision]
        self._network = Dinov2(path.parent, DINOV2_SIDE, "evaluate.dinov2").to(device())

    def prepare(self, image: np.ndarray) -> Tensor:
        seen = (enlarge(image, DINOV2_SIDE) / 255 - IMAGENET_MEAN) / IMAGENET_STD
        return torch.from_numpy(seen).permute(2, 0, 1).float()

    @torch.inference_mode()
    def rows(self, prepared: Sequence[Tensor], captions: Sequence[str]) -> Tensor:
        with arithmetic(device(), self._dtype):
            return self._network(torch.stack(list(prepared)).to(device())).float().cpu()


class Preference:
    """How well people would like an image for its caption: a scaled cosine of a CLIP trained on their choices."""

    def __init__(self, network: nn.Module, scale: float, image_size: int, context_length: int, precision: str):
        from open_clip import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD, SimpleTokenizer, image_transform

        self._network, self._scale = network.to(device()), scale
        self._dtype = DTYPES[precision]
        self._transform = image_transform(image_size, False, OPENAI_DATASET_MEAN, OPENAI_DATASET_STD)
        self._tokenize = SimpleTokenizer(context_length=context_length)

    def prepare(self, image: np.ndarray) -> Tensor:
        return self._transform(Image.fromarray(image))

    @torch.inference_mode()
    def rows(self, prepared: Sequence[Tensor], captions: Sequence[str]) -> Tensor:
        images, tokens = torch.stack(list(prepared)).to(device()), self._tokenize(list(captions)).to(device())
        with arithmetic(device(), self._dtype):
            seen, read = self._network.encode_image(images).float(), self._network.encode_text(tokens).float()
        return self._scale * (normalize(seen, dim=-1) * normalize(read, dim=-1)).sum(1).cpu()


class Hps(Preference):
    """HPSv2.1 (arXiv 2306.09341): open_clip's ViT-H-14 with the weights of HPS_v2.1_compressed.pt; a cosine, not times 100."""

    column = "hps"

    def __init__(self, settings: "FeatureSettings"):
        import open_clip

        path, _, identity = network_weights("evaluate.hps", settings.hps, HPS_FILES)
        self.record = _record(identity, settings, "open_clip's preprocessing, the caption as it is")
        network = open_clip.create_model(HPS_MODEL, load_weights=False)
        _load_checkpoint(network, path)
        size, length = network.visual.image_size, network.context_length
        size = size if isinstance(size, int) else size[0]
        super().__init__(network.eval().requires_grad_(False), 1.0, size, length, settings.precision)


class PickScore(Preference):
    """PickScore (arXiv 2305.01569): a CLIP ViT-H of transformers; the cosine times its scale, about 20."""

    column = "pickscore"

    def __init__(self, settings: "FeatureSettings"):
        path, _, identity = network_weights("evaluate.pickscore", settings.pickscore, PICKSCORE_FILES)
        self.record = _record(identity, settings, "open_clip's preprocessing, the caption as it is")
        network = ScoredClip(path.parent, "evaluate.pickscore")
        super().__init__(network, network.scale, network.image_size, network.context_length, settings.precision)


def _record(identity: str, settings: "FeatureSettings", seen: str) -> dict:
    """What defines a metric: two values of it compare where this agrees."""
    return {
        "weights": identity,
        "image_size": settings.image_size,
        "seen": seen,
        "network_precision": settings.precision,
    }


def _load_checkpoint(network: nn.Module, path: Path) -> None:
    try:
        network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True)["state_dict"])
    except (OSError, RuntimeError, KeyError, TypeError, EOFError, pickle.UnpicklingError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"evaluate.hps: {path} holds no weights of {HPS_MODEL} ({reason}); get it again") from None

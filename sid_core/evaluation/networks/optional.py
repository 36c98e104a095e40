"""Run the networks of optional metrics: DINOv2, HPSv2.1, PickScore and ImageReward.

They get the 8-bit image that the required networks start from, and the caption without the protocol's prefix. Each has a
record of its own: the protocol's hash does not depend on them.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import normalize

from ...cluster.machine import device
from ...data.images import enlarge
from .loading import loading
from .required import Features
from .vision import Dinov2, RewardBlip, ScoredClip
from .weights import bert_vocabulary, network_weights

if TYPE_CHECKING:
    from transformers import BatchEncoding

    from ...config import FeatureSettings

IMAGENET_MEAN, IMAGENET_STD = np.float32([0.485, 0.456, 0.406]), np.float32([0.229, 0.224, 0.225])
DINOV2_SIDE = 224  # arXiv 2306.04675
HPS_MODEL = "ViT-H-14"  # open_clip's name of its architecture
REWARD_TOKENS = 35  # of a caption, longer ones are truncated; arXiv 2304.05977's code


class OptionalNetwork:
    """Network that gives an image a row, stored under its setting's name; `seen` describes its preprocessing."""

    column: str

    def __init__(self, settings: "FeatureSettings", network: nn.Module, identity: str, seen: str):
        self._network = network.to(device())
        # values of a metric are compared if this is equal
        record = {"weights": identity, "image_size": settings.image_size, "seen": seen}
        self.record = record | {"network_precision": "float32"}

    def prepare(self, image: np.ndarray) -> Tensor:
        """Preprocess an image (H, W, 3) uint8 for the network; several threads may call it."""
        raise NotImplementedError

    def rows(self, prepared: Sequence[Tensor], captions: Sequence[str]) -> Tensor:
        """Compute the rows of a batch, (B, D) or (B,) float32."""
        raise NotImplementedError


class Dinov2Features(OptionalNetwork):
    """Features for the Frechet distance of arXiv 2306.04675: the class token of torch.hub's DINOv2 at 224 x 224."""

    column = "dinov2"

    def __init__(self, settings: "FeatureSettings"):
        path, _, identity = network_weights(settings, self.column)
        seen = f"clean-fid: PIL bicubic, float, to {DINOV2_SIDE}; positions as in torch.hub's DINOv2"
        super().__init__(settings, Dinov2(path.parent, DINOV2_SIDE, "evaluate.dinov2"), identity, seen)

    def prepare(self, image: np.ndarray) -> Tensor:
        seen = (enlarge(image, DINOV2_SIDE) / 255 - IMAGENET_MEAN) / IMAGENET_STD
        return torch.from_numpy(seen).permute(2, 0, 1).float()

    @torch.inference_mode()
    def rows(self, prepared: Sequence[Tensor], captions: Sequence[str]) -> Tensor:
        return self._network(torch.stack(list(prepared)).to(device())).cpu()


class Patches(OptionalNetwork):
    """Features of the central crop of an image at full resolution; NaN for an image that is smaller than the crop."""

    column = "patches"

    def __init__(self, features: Features):
        self._features = features
        self.record = {"crop": features.image_size, "seen": "the image as stored, before evaluate.image_size"}

    def prepare(self, image: np.ndarray) -> np.ndarray:
        side = self._features.image_size
        if min(image.shape[:2]) < side:
            return np.full((side, side, 3), np.nan, np.float32)
        top, left = ((length - side) // 2 for length in image.shape[:2])
        return image[top : top + side, left : left + side].copy()  # a view would keep the whole image

    def rows(self, prepared: Sequence[np.ndarray], captions: Sequence[str]) -> Tensor:
        return self._features.rows(prepared)


class Preference(OptionalNetwork):
    """Score of an image for its caption, trained on human choices; by default a scaled cosine of a CLIP."""

    scale = 1.0

    def __init__(self, settings: "FeatureSettings", network: nn.Module, identity: str, side: int, tokenize: Callable):
        from open_clip import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD, image_transform

        super().__init__(settings, network, identity, "open_clip's preprocessing, the caption as it is")
        self._transform = image_transform(side, False, OPENAI_DATASET_MEAN, OPENAI_DATASET_STD)
        self._tokenize = tokenize

    def prepare(self, image: np.ndarray) -> Tensor:
        return self._transform(Image.fromarray(image))

    @torch.inference_mode()
    def rows(self, prepared: Sequence[Tensor], captions: Sequence[str]) -> Tensor:
        images, tokens = torch.stack(list(prepared)).to(device()), self._tokenize(list(captions)).to(device())
        return self.scores(images, tokens).cpu()

    def scores(self, images: Tensor, tokens: Tensor) -> Tensor:
        """Compute the scores (B,) of images (B, 3, S, S) and the tokenizer's output for their captions."""
        seen, read = self._network.encode_image(images), self._network.encode_text(tokens)
        return self.scale * (normalize(seen, dim=-1) * normalize(read, dim=-1)).sum(1)


class Hps(Preference):
    """HPSv2.1 (arXiv 2306.09341): a cosine, not times 100, of open_clip's ViT-H-14 with HPS_v2.1_compressed.pt."""

    column = "hps"

    def __init__(self, settings: "FeatureSettings"):
        import open_clip

        path, _, identity = network_weights(settings, self.column)
        network = open_clip.create_model(HPS_MODEL, load_weights=False)
        with loading(f"evaluate.hps: {path} holds no weights of {HPS_MODEL}", "get it again"):
            network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True)["state_dict"])
        side, length = network.visual.image_size, network.context_length
        side = side if isinstance(side, int) else side[0]
        tokenize = open_clip.SimpleTokenizer(context_length=length)
        super().__init__(settings, network.eval().requires_grad_(False), identity, side, tokenize)


class PickScore(Preference):
    """PickScore (arXiv 2305.01569): a CLIP ViT-H of transformers; the cosine times its scale, about 20."""

    column = "pickscore"

    def __init__(self, settings: "FeatureSettings"):
        from open_clip import SimpleTokenizer

        path, _, identity = network_weights(settings, self.column)
        network = ScoredClip(path.parent, "evaluate.pickscore")
        self.scale = network.scale
        tokenize = SimpleTokenizer(context_length=network.context_length)
        super().__init__(settings, network, identity, network.image_size, tokenize)


class ImageReward(Preference):
    """ImageReward (arXiv 2304.05977), standardised as published: about 0 on average over generators of 2023."""

    column = "imagereward"

    def __init__(self, settings: "FeatureSettings"):
        from transformers import BertTokenizer

        path, _, identity = network_weights(settings, self.column)
        network = RewardBlip(path, "evaluate.imagereward")
        tokenizer = BertTokenizer(str(bert_vocabulary(path.parent)))
        shape = {"padding": "max_length", "truncation": True, "max_length": REWARD_TOKENS, "return_tensors": "pt"}
        super().__init__(settings, network, identity, network.image_size, partial(tokenizer, **shape))

    def scores(self, images: Tensor, tokens: "BatchEncoding") -> Tensor:
        return self._network(images, tokens.input_ids, tokens.attention_mask)


def optional_networks(settings: "FeatureSettings") -> list[OptionalNetwork]:
    """Load the networks of the settings; a UserError names a missing file, another sha256 or another network."""
    kinds = (Dinov2Features, Hps, PickScore, ImageReward)
    return [kind(settings) for kind in kinds if getattr(settings, kind.column) is not None]

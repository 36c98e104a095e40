"""Define two networks of the transformers library, loaded from local files: DINOv2 and PickScore's CLIP."""

import math
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from ...errors import UserError
from .loading import loading


class Dinov2(nn.Module):
    """Image features of DINOv2 (arXiv 2304.07193) from a folder with config.json and model.safetensors.

    Its positions are of images of 518. For `side` they are resized as in torch.hub's DINOv2, which arXiv 2306.04675 uses;
    transformers resizes them otherwise.
    """

    def __init__(self, folder: Path, side: int, where: str):
        from transformers import Dinov2Model

        super().__init__()
        self._model = _load(Dinov2Model, folder, where)
        embeddings = self._model.embeddings
        positions = _resized(embeddings.position_embeddings, side // self._model.config.patch_size)
        embeddings.position_embeddings = nn.Parameter(positions, requires_grad=False)

    def forward(self, images: Tensor) -> Tensor:
        """Encode ImageNet-normalised images (B, 3, side, side) as normed class tokens (B, D)."""
        return self._model(pixel_values=images).pooler_output


def _resized(positions: Tensor, patches: int) -> Tensor:
    """Resize positions (1, 1 + M^2, D) of the class token and M x M patches to patches x patches."""
    side = math.isqrt(positions.shape[1] - 1)
    if side == patches:
        return positions
    maps = positions[:, 1:].transpose(1, 2).unflatten(2, (side, side))  # (1, D, M, M)
    # torch.hub's 0.1 guards against rounding of the size, and its resize samples at the given ratio, not at the sizes'
    maps = interpolate(maps, scale_factor=(patches + 0.1) / side, mode="bicubic")
    return torch.cat([positions[:, :1], maps.flatten(2).transpose(1, 2)], dim=1)


class ScoredClip(nn.Module):
    """A CLIP of transformers with the scale it was trained with, as PickScore (arXiv 2305.01569) uses it."""

    def __init__(self, folder: Path, where: str):
        from transformers import CLIPModel

        super().__init__()
        self._model = _load(CLIPModel, folder, where)
        self.image_size = self._model.config.vision_config.image_size
        self.context_length = self._model.config.text_config.max_position_embeddings
        self.scale = float(self._model.logit_scale.exp())

    def encode_image(self, images: Tensor) -> Tensor:
        """Encode CLIP-normalised images (B, 3, S, S) as embeddings (B, E), not of unit length."""
        return self._model.get_image_features(pixel_values=images).pooler_output

    def encode_text(self, tokens: Tensor) -> Tensor:
        """Encode tokens (B, L) int64, zero-padded (without effect: attention is causal), as embeddings (B, E)."""
        return self._model.get_text_features(input_ids=tokens).pooler_output


def _load(kind: type, folder: Path, where: str) -> nn.Module:
    """Load a model in float32, frozen; a UserError names a folder that does not hold all of one."""
    with loading(f"{where}: {folder} cannot be loaded as {kind.__name__}", "get it again, or give another"):
        model, found = kind.from_pretrained(
            folder, local_files_only=True, use_safetensors=True, output_loading_info=True, dtype=torch.float32
        )
    if missing := sorted(found["missing_keys"]):  # transformers would use random ones
        raise UserError(f"{where}: {folder} lacks weights of {kind.__name__}: {', '.join(missing[:5])}; get it again")
    return model.eval().requires_grad_(False)

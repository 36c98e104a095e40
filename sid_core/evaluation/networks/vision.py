"""Define networks of the transformers library, loaded from local files: DINOv2, PickScore's CLIP and ImageReward's BLIP."""

import math
import re
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from ...errors import UserError
from ...storage.files import read_json
from .loading import loading

if TYPE_CHECKING:
    from transformers import BlipVisionConfig


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


HEAD_LAYERS = (0, 2, 4, 6, 7)  # the others are dropout
HEAD_WIDTH = 64  # of BLIP's image encoder; the number of heads is not in its weights
IMAGE_EPS = 1e-6  # of its layer norms; transformers' default is another
REWARD_MEAN, REWARD_STD = 0.16717362830052426, 1.0333394966054072  # of the head's output, as published
TEXT_SIZES = (
    *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
    *("max_position_embeddings", "hidden_act", "layer_norm_eps", "pad_token_id"),
)
# names of BLIP's image encoder in ImageReward.pt, as patterns, and in transformers
IMAGE_NAMES = {
    r"^cls_token": "embeddings.class_embedding",
    r"^pos_embed": "embeddings.position_embedding",
    r"^patch_embed\.proj": "embeddings.patch_embedding",
    r"^norm\.": "post_layernorm.",
    r"^blocks\.": "encoder.layers.",
    r"\.norm([12])\.": r".layer_norm\1.",
    r"\.attn\.proj\.": ".self_attn.projection.",
    r"\.attn\.": ".self_attn.",
}


class RewardBlip(nn.Module):
    """ImageReward (arXiv 2304.05977) from ImageReward.pt and med_config.json: BLIP's two encoders and a linear head.

    The caption is encoded with cross-attention to the image. The head's layers have no activations between them.
    """

    def __init__(self, path: Path, where: str):
        from transformers import BlipTextConfig, BlipTextModel, BlipVisionModel

        super().__init__()
        with loading(f"{where}: {path} cannot be loaded as ImageReward", "get it again, or give another"):
            weights = torch.load(path, map_location="cpu", weights_only=True)
            image = _below(weights, "blip.visual_encoder.")
            for pattern, name in IMAGE_NAMES.items():
                image = {re.sub(pattern, name, key): tensor for key, tensor in image.items()}
            text = _below(weights, "blip.text_encoder.")
            text.pop("embeddings.position_ids", None)
            sizes = read_json(path.with_name("med_config.json"))
            config = _image_config(image)
            self.image_size = config.image_size
            self._image = BlipVisionModel(config)
            # is_decoder: with cross-attention; `forward` keeps self-attention bidirectional
            cross = {"encoder_hidden_size": config.hidden_size, "is_decoder": True}
            self._text = BlipTextModel(BlipTextConfig(**cross, **{key: sizes[key] for key in TEXT_SIZES}), False)
            self._image.load_state_dict(image)
            self._text.load_state_dict(text)
            self._head = nn.Sequential(*(_linear(_below(weights, f"mlp.layers.{index}.")) for index in HEAD_LAYERS))
        self.eval().requires_grad_(False)

    def forward(self, images: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
        """Compute rewards (B,) of CLIP-normalised images (B, 3, S, S) for BERT's tokens (B, L), with 0 in `mask` for padding."""
        seen = self._image(pixel_values=images).last_hidden_state
        read = self._text(input_ids=tokens, attention_mask=mask, encoder_hidden_states=seen).last_hidden_state
        return (self._head(read[:, 0])[:, 0] - REWARD_MEAN) / REWARD_STD


def _image_config(weights: dict[str, Tensor]) -> "BlipVisionConfig":
    """Return the sizes of BLIP's image encoder, by its weights."""
    from transformers import BlipVisionConfig

    width, _, patch, _ = weights["embeddings.patch_embedding.weight"].shape
    return BlipVisionConfig(
        hidden_size=width,
        intermediate_size=len(weights["encoder.layers.0.mlp.fc1.weight"]),
        num_hidden_layers=len([key for key in weights if key.endswith("mlp.fc1.weight")]),
        num_attention_heads=width // HEAD_WIDTH,
        image_size=patch * math.isqrt(weights["embeddings.position_embedding"].shape[1] - 1),
        patch_size=patch,
        layer_norm_eps=IMAGE_EPS,
    )


def _below(weights: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): tensor for key, tensor in weights.items() if key.startswith(prefix)}


def _linear(weights: dict[str, Tensor]) -> nn.Linear:
    layer = nn.Linear(*weights["weight"].shape[::-1])
    layer.load_state_dict(weights)
    return layer


def _load(kind: type, folder: Path, where: str) -> nn.Module:
    """Load a model in float32, frozen; a UserError names a folder that does not hold all of one."""
    with loading(f"{where}: {folder} cannot be loaded as {kind.__name__}", "get it again, or give another"):
        model, found = kind.from_pretrained(
            folder, local_files_only=True, use_safetensors=True, output_loading_info=True, dtype=torch.float32
        )
    if missing := sorted(found["missing_keys"]):  # transformers would use random ones
        raise UserError(f"{where}: {folder} lacks weights of {kind.__name__}: {', '.join(missing[:5])}; get it again")
    return model.eval().requires_grad_(False)

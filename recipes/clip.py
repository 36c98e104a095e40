"""Train a small open_clip model on scenes and captions; its text tower is also the teacher's text encoder."""

import json
import math
from pathlib import Path

import torch
from open_clip.model import CLIP
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import cross_entropy

from sid_core.data.shapes.scenes import IMAGE_SIZE

from .common import Training, batches
from .networks import new_text_encoder, new_tokenizer
from .settings import ClipSettings
from .tokenizer import VOCABULARY, train_tokenizer

MEAN, STD = 0.5, 0.5  # of the pixel normalisation, every channel
HIGHEST_LOGIT_SCALE = math.log(30)  # captions are ambiguous: a higher scale is overconfident


def train_clip(settings: ClipSettings, seed: int, folder: Path) -> None:
    """Train the model; write clip (an open_clip directory), teacher/tokenizer and teacher/text_encoder."""
    torch.manual_seed(seed)
    config = model_config(settings)
    model = CLIP(**config)
    tokenizer = new_tokenizer(*train_tokenizer(), settings.tokens)
    training = Training(model, settings.steps, settings.learning_rate, "clip")
    stream = batches(settings.batch)
    for _ in range(settings.steps):
        images, texts, _ = next(stream)
        tokens = tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt").input_ids
        image_features = model.encode_image((images.float() / 255 - MEAN) / STD, normalize=True)
        text_features = model.encode_text(tokens, normalize=True)
        scale = model.logit_scale.clamp(max=HIGHEST_LOGIT_SCALE).exp()
        training.update(contrastive_loss(scale * image_features @ text_features.T, tokens))
    _save_open_clip(training.average, config, folder / "clip")
    tokenizer.save_pretrained(folder / "clip")
    tokenizer.save_pretrained(folder / "teacher" / "tokenizer")
    shape = (settings.width, settings.text_layers, settings.text_heads, VOCABULARY, settings.tokens)
    text_encoder = new_text_encoder(*shape)
    text_encoder.load_state_dict(text_weights(training.average))
    text_encoder.save_pretrained(folder / "teacher" / "text_encoder")


def contrastive_loss(logits: Tensor, tokens: Tensor) -> Tensor:
    """Return CLIP's symmetric loss of (B, B) logits; equal captions (tokens (B, L)) of a batch share the target."""
    same = (tokens[:, None] == tokens[None]).all(dim=2).float()
    target = same / same.sum(dim=1, keepdim=True)
    return (cross_entropy(logits, target) + cross_entropy(logits.T, target)) / 2


def model_config(settings: ClipSettings) -> dict:
    """Return open_clip's model_cfg."""
    return {
        "embed_dim": settings.width,
        "vision_cfg": {
            "image_size": IMAGE_SIZE,
            "layers": settings.vision_layers,
            "width": settings.width,
            "head_width": settings.width // settings.text_heads,
            "patch_size": settings.patch,
        },
        "text_cfg": {
            "context_length": settings.tokens,
            "vocab_size": VOCABULARY,
            "hf_tokenizer_name": "shapes",  # any name: open_clip takes the tokenizer from the directory itself
            "width": settings.width,
            "heads": settings.text_heads,
            "layers": settings.text_layers,
        },
    }


def text_weights(model: CLIP) -> dict[str, Tensor]:
    """Copy the text tower's weights under the names of transformers' CLIPTextModel."""
    weights = {
        "embeddings.token_embedding.weight": model.token_embedding.weight,
        "embeddings.position_embedding.weight": model.positional_embedding,
        "final_layer_norm.weight": model.ln_final.weight,
        "final_layer_norm.bias": model.ln_final.bias,
    }
    names = {"ln_1": "layer_norm1", "ln_2": "layer_norm2", "mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2"}
    names["attn.out_proj"] = "self_attn.out_proj"
    for index, block in enumerate(model.transformer.resblocks):
        layer = f"encoder.layers.{index}"
        for ours, theirs in names.items():
            module = block.get_submodule(ours)
            weights |= {f"{layer}.{theirs}.weight": module.weight, f"{layer}.{theirs}.bias": module.bias}
        chunks = zip("qkv", block.attn.in_proj_weight.chunk(3), block.attn.in_proj_bias.chunk(3), strict=True)
        for letter, weight, bias in chunks:
            module = f"{layer}.self_attn.{letter}_proj"
            weights |= {f"{module}.weight": weight, f"{module}.bias": bias}
    return {name: tensor.detach().clone() for name, tensor in weights.items()}


def _save_open_clip(model: CLIP, config: dict, out: Path) -> None:
    out.mkdir(parents=True)
    weights = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    save_file(weights, out / "open_clip_model.safetensors")
    preprocess = {"mean": [MEAN] * 3, "std": [STD] * 3, "interpolation": "bicubic", "resize_mode": "shortest"}
    text = json.dumps({"model_cfg": config, "preprocess_cfg": preprocess}, indent=2)
    (out / "open_clip_config.json").write_text(text + "\n", encoding="utf-8")

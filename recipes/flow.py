"""Train a second teacher by flow matching: a small transformer in the layout of Stable Diffusion 3, on the same scenes."""

import shutil
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import mse_loss

from sid_core.data.shapes.captions import all_captions
from sid_core.models.text import TextEncoder
from sid_core.models.vae import ImageCodec
from sid_core.storage.files import read_json, write_json

from .clip import text_weights
from .common import Training
from .networks import new_flow_scheduler, new_projected_text_encoder, new_transformer
from .settings import FlowSettings
from .teacher import encode_scenes


def train_flow(settings: FlowSettings, seed: int, folder: Path) -> None:
    """Train a transformer on the VAE in `teacher` and the text tower in `clip`; write `flow`, a diffusers directory.

    Both text encoders of Stable Diffusion 3 are that tower. There is no T5, nor the zeros that diffusers puts in its place.
    Weights but the VAE's have 16 bits.
    """
    out = folder / "flow"
    _write_text_encoders(folder, out)
    shutil.copytree(folder / "teacher" / "vae", out / "vae")
    config = out / "vae" / "config.json"
    write_json(config, read_json(config) | {"shift_factor": 0.0})  # the pipeline adds it
    prompts = [*all_captions(), ""]
    tokens, pooled = embed(out, prompts)
    codec = ImageCodec.from_directory(folder / "teacher")
    mean, std, caption = encode_scenes(codec, settings.scenes, {text: row for row, text in enumerate(prompts)})

    torch.manual_seed(seed)
    transformer = new_transformer(settings, mean.shape[1], mean.shape[2], tokens.shape[2], pooled.shape[1])
    training = Training(transformer, settings.steps, settings.learning_rate, "flow")
    for _ in range(settings.steps):
        chosen = torch.randint(len(mean), (settings.batch,))
        x_0 = mean[chosen].float() + std[chosen].float() * torch.randn(settings.batch, *mean.shape[1:])
        dropped = torch.rand(settings.batch) < settings.prompt_dropout
        rows = torch.where(dropped, len(prompts) - 1, caption[chosen])
        eps, t = torch.randn_like(x_0), torch.sigmoid(torch.randn(settings.batch))  # as Stable Diffusion 3's
        x_t = torch.lerp(x_0, eps, t.view(-1, 1, 1, 1))
        training.update(mse_loss(transformer(x_t, tokens[rows], pooled[rows], 1000 * t).sample, eps - x_0))
    training.average.half().save_pretrained(out / "transformer")
    new_flow_scheduler().save_pretrained(out / "scheduler")
    _write_index(out)


@torch.no_grad()
def embed(folder: Path, prompts: list[str]) -> tuple[Tensor, Tensor]:
    """Return tokens (n, L, 2D), the last hidden layer but one of both encoders, and pooled (n, 2D)."""
    encoder = TextEncoder.from_directory(folder, "", _projected())
    output = encoder.evaluate(prompts, output_hidden_states=True)
    return torch.cat([output.hidden_states[-2]] * 2, dim=-1), torch.cat([output.text_embeds] * 2, dim=-1)


def _projected() -> type:
    from transformers import CLIPTextModelWithProjection

    return CLIPTextModelWithProjection


def _write_text_encoders(folder: Path, out: Path) -> None:
    from open_clip import create_model

    clip = create_model(f"local-dir:{folder / 'clip'}", require_pretrained=True)
    shape = TextEncoder.from_directory(folder / "teacher").model.config
    encoder = new_projected_text_encoder(shape)
    encoder.load_state_dict({f"text_model.{name}": weight for name, weight in text_weights(clip).items()}, strict=False)
    encoder.text_projection.weight.data.copy_(clip.text_projection.T)
    for suffix in ("", "_2"):
        encoder.half().save_pretrained(out / f"text_encoder{suffix}")
        shutil.copytree(folder / "teacher" / "tokenizer", out / f"tokenizer{suffix}")


def _write_index(folder: Path) -> None:
    clip = ["transformers", "CLIPTextModelWithProjection"]
    tokenizer = ["transformers", "CLIPTokenizer"]
    index = {
        "_class_name": "StableDiffusion3Pipeline",
        "max_sequence_length": 0,  # tokens in place of T5's; diffusers ignores the key
        "feature_extractor": [None, None],
        "image_encoder": [None, None],
        "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
        "text_encoder": clip,
        "text_encoder_2": clip,
        "text_encoder_3": [None, None],
        "tokenizer": tokenizer,
        "tokenizer_2": tokenizer,
        "tokenizer_3": [None, None],
        "transformer": ["diffusers", "SD3Transformer2DModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    write_json(folder / "model_index.json", index)

"""Add a family of teachers in one file: a tiny transformer with flow matching.

x_t = (1 - t) x_0 + t eps, and the network predicts v = eps - x_0 from patches, t and the words of a prompt.
"""

import json
from pathlib import Path

import torch
from safetensors.torch import load_model, save_model
from torch import Tensor, nn

from sid_core.method.schedule import FlowSchedule
from sid_core.models.backbones import Backbone
from sid_core.models.backbones.flow import FlowEuler
from sid_core.models.conditioning import Conditioning

WIDTH, PATCH, CHANNELS, SIDE, TOKENS = 16, 2, 3, 8, 6
FOLDERS = {"text_encoder": "model", "transformer": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model"}


class Transformer(nn.Module):
    """One attention block over patches, words and t."""

    def __init__(self):
        super().__init__()
        values = CHANNELS * PATCH**2
        self.patches, self.time = nn.Linear(values, WIDTH), nn.Linear(1, WIDTH)
        self.block = nn.TransformerEncoderLayer(WIDTH, 2, 2 * WIDTH, dropout=0.0, batch_first=True, norm_first=True)
        self.out = nn.Linear(WIDTH, values)

    def forward(self, x: Tensor, t: Tensor, tokens: Tensor) -> Tensor:
        patches = nn.functional.unfold(x, PATCH, stride=PATCH).transpose(1, 2)
        time = self.time(t.to(x.dtype).view(-1, 1, 1) / 1000)
        h = self.block(torch.cat([self.patches(patches), tokens, time], dim=1))[:, : patches.shape[1]]
        return nn.functional.fold(self.out(h).transpose(1, 2), x.shape[2:], PATCH, stride=PATCH)


class WordEncoder(nn.Module):
    """A table of embeddings, indexed by the length of each word."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(32, WIDTH)

    @torch.no_grad()
    def encode(self, prompts) -> Conditioning:
        ids = [([min(len(word), 31) for word in prompt.split()] + [0] * TOKENS)[:TOKENS] for prompt in prompts]
        return Conditioning(self.table(torch.tensor(ids, device=self.table.weight.device)).float())

    def empty(self) -> Conditioning:
        return self.encode([""])


class Codec(nn.Module):
    """A linear autoencoder that divides height and width by 4."""

    def __init__(self):
        super().__init__()
        self.down, self.up = nn.Conv2d(3, CHANNELS, 4, stride=4), nn.ConvTranspose2d(CHANNELS, 3, 4, stride=4)

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        return self.down(images.to(self.down.weight.dtype)).float()

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        return self.up(latents.to(self.up.weight.dtype)).float()


class TinyFlow(Backbone):
    PIPELINES = ("TinyFlowPipeline",)
    NETWORK = "transformer"
    WEIGHTS = FOLDERS
    CONFIGS = dict.fromkeys(FOLDERS, ("config.json",))
    NEEDED = CONFIGS
    SHARDED = COMPILED = ("TransformerEncoderLayer",)

    def predict(self, x_t: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
        return self.network(x_t, self.schedule.network_time(t), cond.tokens)

    def blocks(self):
        yield self.network.block

    def save_config(self, folder: Path) -> None:
        (folder / "config.json").write_text("{}")

    @classmethod
    def load_network(cls, weights: Path, teacher: Path) -> "TinyFlow":
        return cls(_load(Transformer(), weights, cls.WEIGHTS[cls.NETWORK]), FlowSchedule(), "flow").frozen()

    @classmethod
    def text_encoder(cls, folder: Path) -> WordEncoder:
        return _load(WordEncoder(), folder / "text_encoder", "model")

    @classmethod
    def image_codec(cls, folder: Path, at_once: int | None = None) -> Codec:
        return _load(Codec(), folder / "vae", "diffusion_pytorch_model")

    @classmethod
    def latent_shape(cls, folder: Path) -> tuple[int, int, int]:
        return CHANNELS, SIDE, SIDE

    @classmethod
    def solver(cls, name: str, folder: Path, steps: int) -> FlowEuler:
        solver = FlowEuler()
        solver.set_timesteps(steps)
        return solver


def _load(module: nn.Module, folder: Path, stem: str) -> nn.Module:
    load_model(module, folder / f"{stem}.safetensors")
    return module.eval().requires_grad_(False)


def write_teacher(folder: Path) -> Path:
    """Write a teacher of random weights in the layout of diffusers."""
    torch.manual_seed(0)
    for (name, stem), module in zip(FOLDERS.items(), (WordEncoder(), Transformer(), Codec()), strict=True):
        (folder / name).mkdir(parents=True)
        (folder / name / "config.json").write_text("{}")
        save_model(module, folder / name / f"{stem}.safetensors")
    (folder / "model_index.json").write_text(json.dumps({"_class_name": TinyFlow.PIPELINES[0]}))
    return folder

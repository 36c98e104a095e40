"""Define a diffusion network as x0_hat = f(x_t, t, c), independent of its prediction type and call signature.

Teacher, fake score and generator are one class with three sets of weights. A family of teachers (Stable Diffusion, …)
is one subclass of `Backbone`; no other code knows its components on disk.
"""

import json
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import ClassVar, Self

import torch
from torch import Tensor, nn

from ...errors import UserError
from ...method.schedule import Schedule
from ...storage.files import write_json
from ..conditioning import Conditioning, Encoder


class Backbone(nn.Module):
    """A conditional diffusion network, evaluated as an estimate of x_0.

    Guiding x_0 or the network's own output gives the same result: x_0 is affine in the output, and the coefficients of the
    guided sum add to one.

    Args:
        network: the diffusion network.
        schedule: the teacher's noise schedule.
        prediction_type: 'epsilon', 'v_prediction', 'flow' (the velocity eps - x_0), or what a family adds.
    """

    # --- defined by a family -----------------------------------------------------------------------------------------
    PIPELINES: ClassVar[tuple[str, ...]]  # `_class_name` in model_index.json
    NETWORK: ClassVar[str]  # component folder of the diffusion network
    WEIGHTS: ClassVar[dict[str, str]]  # components with weights, and the stem of their file
    CONFIGS: ClassVar[dict[str, tuple[str, ...]]]  # files beside the weights
    NEEDED: ClassVar[dict[str, tuple[str, ...]]]  # the required ones of CONFIGS: any of the alternatives suffices
    OPTIONAL: ClassVar[tuple[str, ...]] = ()  # endings of text encoders, and their tokenizers, that may be absent
    GUIDED: ClassVar[bool] = True  # false: distilled from guidance, so that the network has no unconditional estimate
    # class names of the modules that training compiles, and whose parameters it shards
    COMPILED: ClassVar[Collection[str]] = ()
    SHARDED: ClassVar[Collection[str]] = ()
    # endings of the names of the layers that LoRA adapts by default
    ADAPTED: ClassVar[Collection[str]] = ()
    # top-level module -> rank in backward, where that is not the reversed order of the parameters
    BACKWARD_ORDER: ClassVar[dict[str, int]] = {}

    def __init__(self, network: nn.Module, schedule: Schedule, prediction_type: str):
        super().__init__()
        self.network, self.schedule, self.prediction_type = network, schedule, prediction_type

    def predict(self, x_t: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
        """Return the network's own output (B, C, H, W) for inputs of its dtype."""
        raise NotImplementedError

    def predict_pair(self, x_t: Tensor, t: Tensor, uncond: Conditioning, cond: Conditioning) -> Tensor:
        """Return the outputs without and with the prompt, (2B, C, H, W) in this order."""
        return self.predict(torch.cat([x_t, x_t]), torch.cat([t, t]), Conditioning.cat([uncond, cond]))

    def predict_with_logits(self, x_t: Tensor, t: Tensor, cond: Conditioning) -> tuple[Tensor, Tensor]:
        """Return the outputs for B inputs and B or 2B prompts, and a discriminator's logits of the last B (B, ...)."""
        raise NotImplementedError

    def predict_logits(self, x_t: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
        """Return the same logits from the part of the network that they need."""
        return self.predict_with_logits(x_t, t, cond)[1]

    def check_discriminator(self) -> None:
        """Reject `adversarial` for a network without logits."""
        raise UserError(
            f"adversarial: expected a teacher whose family has a discriminator, got {type(self).__name__}. "
            "Fix: remove it, or define predict_with_logits (docs/contributing/family.md)"
        )

    def to_x0(self, output: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """Convert the network's output to x_0."""
        alpha, sigma = self.schedule.alpha(t), self.schedule.sigma(t)
        if self.prediction_type == "epsilon":
            return (x_t - sigma * output) / alpha
        if self.prediction_type == "flow":
            return x_t - sigma * output
        return alpha * x_t - sigma * output

    def blocks(self) -> Iterator[nn.Module]:
        """Yield the blocks whose activations activation checkpointing recomputes."""
        yield from ()

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Load the teacher of a prepared directory: float32, evaluation mode, no gradients."""
        return cls.load_network(folder / cls.NETWORK, folder)

    @classmethod
    def load_network(cls, weights: Path, teacher: Path) -> Self:
        """Load the network in the folder `weights`, with the schedule and prediction type of a prepared teacher directory."""
        raise NotImplementedError

    @classmethod
    def text_encoder(cls, folder: Path) -> Encoder:
        """Load the text encoders of a prepared directory."""
        raise NotImplementedError

    @classmethod
    def image_codec(cls, folder: Path, at_once: int | None = None) -> nn.Module:
        """Load the autoencoder of a prepared directory; it takes `at_once` images at a time."""
        raise NotImplementedError

    @classmethod
    def latent_shape(cls, folder: Path) -> tuple[int, int, int]:
        """Return (C, H, W) of the latents the network was trained on."""
        raise NotImplementedError

    @classmethod
    def solver(cls, name: str, folder: Path, steps: int):
        """Return a sampler of the baseline `name` that steps with x_0, with diffusers' interface of schedulers."""
        raise NotImplementedError

    @classmethod
    def check_files(cls, files: Collection[str], place: str) -> None:
        """Reject a teacher of another family by its file names alone."""

    @classmethod
    def check_configs(cls, folder: Path, place: str) -> None:
        """Reject a teacher of another family by its JSON files alone, before weights are fetched."""

    @classmethod
    def check(cls, folder: Path, place: str) -> dict:
        """Load the components, reject those that do not fit together, and return findings for provenance.json."""
        return {}

    # --- common to all families --------------------------------------------------------------------------------------

    def forward(
        self, x_t: Tensor, t: Tensor, cond: Conditioning, uncond: Conditioning | None = None, guidance_scale: float = 1
    ) -> Tensor:
        """Return x0_hat = f(empty) + kappa (f(c) - f(empty)), (B, C, H, W) float32.

        Args:
            x_t: noisy latents (B, C, H, W) float32.
            t: noise levels (B,).
            cond: B prompts.
            uncond: the empty prompt, one row; needed where guidance_scale is not 1.
            guidance_scale: kappa, of any sign. At 1 only the conditional branch is evaluated, at 0 only the other.
        """
        if guidance_scale != 1 and not self.GUIDED:
            raise UserError(
                f"guidance scale {guidance_scale:g}: expected 1 for {type(self).__name__}, whose guidance is an input of its network. "
                "Fix: set baselines.guidance_scales: [1], and distil with the strategy none"
            )
        x, cond = x_t.to(self.dtype), cond.to(self.dtype)
        if guidance_scale == 1:
            return self.to_x0(self.predict(x, t, cond).float(), x_t, t)
        assert uncond is not None, f"guidance_scale={guidance_scale} needs the embedding of the empty prompt"
        empty = uncond.to(self.dtype).expand(len(cond))
        if guidance_scale == 0:
            return self.to_x0(self.predict(x, t, empty).float(), x_t, t)
        return self.to_x0(guide(self.predict_pair(x, t, empty, cond), guidance_scale), x_t, t)

    def with_logits(
        self, x_t: Tensor, t: Tensor, cond: Conditioning, uncond: Conditioning | None = None, guidance_scale: float = 1
    ) -> tuple[Tensor, Tensor]:
        """Return x0_hat as `forward` does, and the discriminator's logits (B, ...) float32 of the conditional branch."""
        if guidance_scale == 0:  # x0_hat evaluates the other branch alone
            return self(x_t, t, cond, uncond, 0), self.logits(x_t, t, cond)
        text = cond.to(self.dtype)
        if guidance_scale != 1:
            text = Conditioning.cat([uncond.to(self.dtype).expand(len(cond)), text])
        output, logits = self.predict_with_logits(x_t.to(self.dtype), t, text)
        output = output.float() if guidance_scale == 1 else guide(output, guidance_scale)
        return self.to_x0(output, x_t, t), logits.float()

    def logits(self, x_t: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
        """Return the discriminator's logits (B, ...) float32 alone."""
        return self.predict_logits(x_t.to(self.dtype), t, cond.to(self.dtype)).float()

    def eps(self, x0_hat: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """Return the noise that an estimate of x_0 implies: (x_t - alpha x0_hat) / sigma."""
        return (x_t - self.schedule.alpha(t) * x0_hat) / self.schedule.sigma(t)

    @property
    def dtype(self) -> torch.dtype:
        return next(self.network.parameters()).dtype

    def with_network(self, network: nn.Module) -> Self:
        """Return a backbone of the same kind around another network of the same architecture."""
        return type(self)(network, self.schedule, self.prediction_type)

    def frozen(self) -> Self:
        return self.eval().requires_grad_(False)

    def save_config(self, folder: Path) -> None:
        """Write the network's config.json, without the local paths that diffusers' own save includes."""
        config = json.loads(self.network.to_json_string())
        write_json(folder / "config.json", {key: value for key, value in config.items() if key != "_name_or_path"})

    @classmethod
    def absent(cls, files: Collection[str], index: dict) -> set[str]:
        """Return the optional components that a teacher lacks, by its files and its model_index.json."""
        present = {file.split("/")[0] for file in files} - {name for name in index if index[name] == [None, None]}
        endings = [ending for ending in cls.OPTIONAL if f"text_encoder{ending}" not in present]
        return {f"{name}{ending}" for ending in endings for name in ("text_encoder", "tokenizer")}

    @classmethod
    def missing(cls, folder: Path) -> list[str]:
        """Return the components that a prepared directory lacks."""
        files = {name: (f"{stem}.safetensors",) for name, stem in cls.WEIGHTS.items()}
        absent = cls.absent([path.name for path in folder.glob("*")], {})
        needed = [(name, names) for name, names in (cls.NEEDED | files).items() if name not in absent]
        return [name for name, names in needed if not any((folder / name / file).is_file() for file in names)]


def guide(pair: Tensor, scale: float) -> Tensor:
    """Return f(empty) + kappa (f(c) - f(empty)) (B, ...) float32 of outputs without and with the prompt (2B, ...)."""
    output_uncond, output_cond = pair.float().chunk(2)
    return output_uncond + scale * (output_cond - output_uncond)

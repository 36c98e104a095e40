"""Build a Trainer without files, for benchmarks, FLOP counts and predictions of memory.

The teacher has random weights, or shapes only on the device `meta`; prompt embeddings are random. It needs no
tokenizer, text encoder or configuration library.
"""

from types import SimpleNamespace

import torch
from torch import Tensor

from ..models.architectures import Architecture, new_backbone
from ..models.conditioning import Conditioning
from ..models.devices import set_memory_format
from .iteration import Trainer
from .precision import set_determinism

# fields of config.Distill that Trainer reads, as in the published runs
PUBLISHED = {
    "train_kimg": 4812, "batch": 512, "micro_batch": 16, "lr": 1e-6, "fake_lr": None, "lr_final": None,
    "t_init": 625, "ema_halflife_nimg": 50000, "nonfinite": "stop",
    "precision": "float32", "checkpointing": False, "offload": "none", "shard": "none",
    "compile": False, "deterministic": True,
}  # fmt: skip


class RandomPrompts:
    """A PromptSet of random embeddings: `table` of N prompts in host memory, `empty` of one on the device.

    Args:
        shape: (L, D) of the tokens.
        pooled: width of the pooled embedding, if there is one.
    """

    def __init__(
        self, shape: tuple[int, int], device: torch.device, pooled: int | None = None, count: int = 256, seed: int = 0
    ):
        generator = torch.Generator().manual_seed(seed)
        shapes = [shape, (pooled,)] if pooled else [shape]
        parts = [[torch.randn(rows, *one, generator=generator) for rows in (count, 1)] for one in shapes]
        self.table, empty = (Conditioning(*rows) for rows in zip(*parts, strict=True))
        self.empty = empty.map(lambda part: part.to(device))

    def __len__(self) -> int:
        return len(self.table)

    def __call__(self, indices: Tensor, dropped: Tensor | None = None) -> Conditioning:
        cond = self.table[indices].to_device(self.empty.tokens.device)
        return cond if dropped is None else cond.replace(dropped, self.empty)


class RandomPairs:
    """RealPairs without content: captions of `prompts`, and latents of zeros."""

    def __init__(self, prompts: RandomPrompts, latent_shape: tuple[int, int, int]):
        self.prompts, self.latent = prompts, torch.zeros(1, *latent_shape, device=prompts.empty.tokens.device)

    def __len__(self) -> int:
        return len(self.prompts)

    def __call__(self, indices: Tensor, dropped: Tensor | None = None) -> tuple[Tensor, Conditioning]:
        return self.latent.repeat(len(indices), 1, 1, 1), self.prompts(indices, dropped)


def make_run(kappa: float, seed: int = 0, **changes) -> SimpleNamespace:
    """Make a run of a one-step generator with all guidance scales `kappa`, with `changes`."""
    usual = {
        "name": "dry-run", "objective": "sid", "fake_train": kappa, "fake_eval": kappa, "teacher": kappa, "alpha": 1.0,
        "num_steps": 1, "steps_objective": "last", "step_noise": "fresh", "fake_updates": 1, "ida": 0.0,
        "adversarial": None, "real_uid": None, "lora": None, "seed": seed,
    }  # fmt: skip
    return SimpleNamespace(**usual | changes)


def make_settings(**changes) -> SimpleNamespace:
    """Make the published settings with `changes`."""
    unknown = changes.keys() - PUBLISHED.keys()
    assert not unknown, f"{unknown}: not among {list(PUBLISHED)}"
    return SimpleNamespace(**PUBLISHED | changes)


def make_trainer(
    architecture: Architecture,
    device: str | torch.device,
    kappa: float = 2.0,
    run: SimpleNamespace | None = None,
    **changes,
) -> Trainer:
    """Make a Trainer of `architecture` on `device` by the published settings with `changes`.

    Args:
        run: made by `make_run`; None: of a one-step generator with all guidance scales `kappa`.
    """
    device = torch.device(device)
    teacher = new_backbone(architecture, "meta" if device.type == "meta" else "cpu")
    settings = make_settings(**changes)
    set_determinism(settings.deterministic)
    set_memory_format(teacher.network, settings.precision, device)
    prompts = RandomPrompts(architecture.text_shape, device, architecture.pooled)
    real = RandomPairs(prompts, architecture.latent_shape)
    latent_shape = architecture.latent_shape
    return Trainer(teacher, prompts, latent_shape, run or make_run(kappa), settings, device=device, real=real)

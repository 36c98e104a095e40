"""Define the settings of each stage: what shapes its result and nothing else."""

from typing import Literal

import yaml
from pydantic import Field

from ..storage.files import digest
from .blocks import (
    Block,
    Count,
    Evaluate,
    Imported,
    Prompts,
    ReferenceSettings,
    Sampling,
    Split,
    Timestep,
)
from .runs import Baseline, Run


class BuildReferenceSettings(ReferenceSettings):
    """Everything that shapes the reference features."""

    split: Split | Literal["watch"] = Field(
        "evaluation",
        description="whose embedded reference images: validation and the watch over a training have their own",
    )


class ImportSettings(Block):
    """All that shapes an imported generator."""

    run: Run
    imported: Imported


class GenerateSettings(Block):
    """All that shapes the samples of a generator."""

    t_init: Timestep
    num_steps: Count
    sampling: Sampling


class BaselineSettings(Block):
    """All that shapes the samples of a baseline."""

    baseline: Baseline
    split: Split
    sampling: Sampling


class PromptsSettings(Block):
    """All that shapes the prompt files."""

    prompts: Prompts


class ScoreSettings(Block):
    """All that shapes a score beside the features it is made from."""

    evaluate: Evaluate
    samples: Count
    seed: int


def reference_settings(evaluate: Evaluate, split: str = "evaluation") -> BuildReferenceSettings:
    """Return the reference's part of a protocol."""
    return BuildReferenceSettings(**part(ReferenceSettings, evaluate).model_dump(), split=split)


def part(kind: type[Block], block: Block) -> Block:
    """Return the settings of `kind` that `block`, of a class below it, holds among others."""
    return kind(**{key: getattr(block, key) for key in kind.model_fields})


def dump(settings: Block) -> str:
    """YAML text of settings, keys in declaration order."""
    return yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False)


def settings_digest(settings: Block) -> str:
    """Hex sha256 of settings by value."""
    return digest(settings.model_dump(mode="json"))

"""Define the settings of each stage: those that its result depends on, and no others."""

from typing import Literal

import yaml
from pydantic import Field

from ..storage.files import digest
from .blocks import (
    Block,
    Captions,
    Count,
    Evaluate,
    Imported,
    InitialTimestep,
    ReferenceSettings,
    Sampling,
    Split,
    StepNoise,
)
from .runs import Baseline, Run


class BuildReferenceSettings(ReferenceSettings):
    """Settings of the reference features."""

    split: Split | Literal["watch"] = Field("evaluation", description="of scenes; `watch`: for proxy evaluations")


class ImportSettings(Block):
    """Settings of an imported generator."""

    run: Run
    imported: Imported


class GenerateSettings(Block):
    """Settings of the samples of a generator."""

    t_init: InitialTimestep
    num_steps: Count
    step_noise: StepNoise = "fresh"
    sampling: Sampling


class BaselineSettings(Block):
    """Settings of the samples of a baseline."""

    baseline: Baseline
    split: Split
    sampling: Sampling


class PromptsSettings(Block):
    """Settings of the prompt files."""

    prompts: Captions


class ScoreSettings(Block):
    """Settings of a score; features are inputs."""

    evaluate: Evaluate
    samples: Count
    seed: int


def reference_settings(evaluate: Evaluate, split: str = "evaluation") -> BuildReferenceSettings:
    """Return the reference's part of a protocol."""
    return BuildReferenceSettings(**part(ReferenceSettings, evaluate).model_dump(), split=split)


def part(kind: type[Block], block: Block) -> Block:
    """Return the settings of `kind` in `block`, an instance of a subclass."""
    return kind(**{key: getattr(block, key) for key in kind.model_fields})


def dump(settings: Block) -> str:
    """Return settings as YAML, keys in declaration order."""
    return yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False)


def settings_digest(settings: Block) -> str:
    """Return the hex sha256 of settings by value."""
    return digest(settings.model_dump(mode="json"))

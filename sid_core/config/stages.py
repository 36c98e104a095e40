"""Freeze the settings of each stage.

Every stage receives a settings file of its own that holds what shapes that stage's result and nothing else, so that a change to
evaluation never retrains and a new scale trains only itself.
"""

from typing import Literal

import yaml
from pydantic import Field

from ..storage.files import digest
from .blocks import (
    SEEDS,
    Block,
    Count,
    Evaluate,
    FeatureSettings,
    Imported,
    Prompts,
    ReferenceSettings,
    Sampling,
    Split,
    Timestep,
)
from .runs import Baseline, Run, baselines, distillations, imported_run
from .schema import Config


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
    return BuildReferenceSettings(**_part(ReferenceSettings, evaluate).model_dump(), split=split)


def noise_seed(config: Config) -> int:
    """Seed of sample 0. The validation split takes the upper half of the 2^32 seeds, so no noise is shared between the splits."""
    return config.generate.seed + (SEEDS // 2 if config.prompts.split == "validation" else 0)


def stage_settings(config: Config) -> dict[str, Block]:
    """Every settings file of the experiment, by its path below results/<experiment>/."""
    evaluate, seed = config.evaluate, noise_seed(config)
    sampling = _part(Sampling, config.generate).model_copy(update={"seed": seed})
    files: dict[str, Block] = {
        "teacher.settings.yaml": config.teacher,
        "prompts.settings.yaml": PromptsSettings(prompts=config.prompts),
        "reference/settings.yaml": reference_settings(evaluate, config.prompts.split),
        "features.settings.yaml": _part(FeatureSettings, evaluate),
        "score.settings.yaml": ScoreSettings(evaluate=evaluate, samples=config.generate.samples, seed=seed),
    }
    if config.distill.proxy_samples:
        split = "watch" if evaluate.reference == "embedded" else config.prompts.split
        files["watch/settings.yaml"] = reference_settings(evaluate, split)
    for name, teacher in config.teachers.items():
        files[f"teachers/{name}.settings.yaml"] = teacher
    for settings in distillations(config):
        run = settings.run
        files[f"runs/{run.name}/settings.yaml"] = settings
        files[f"runs/{run.name}/generate.yaml"] = GenerateSettings(
            t_init=config.distill.t_init, num_steps=run.num_steps, sampling=sampling
        )
    for imported in config.imports:
        run = imported_run(imported)
        files[f"runs/{run.name}/settings.yaml"] = ImportSettings(run=run, imported=imported)
        files[f"runs/{run.name}/generate.yaml"] = GenerateSettings(
            t_init=imported.t_init, num_steps=run.num_steps, sampling=sampling
        )
    for baseline in baselines(config):
        files[f"baselines/{baseline.name}/generate.yaml"] = BaselineSettings(
            baseline=baseline, split=config.prompts.split, sampling=sampling
        )
    return files


def _part(kind: type[Block], block: Block) -> Block:
    """The settings of `kind` that `block`, of a class below it, holds among others."""
    return kind(**{key: getattr(block, key) for key in kind.model_fields})


def dump(settings: Block) -> str:
    """YAML text of settings, keys in declaration order."""
    return yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False)


def settings_digest(settings: Block) -> str:
    """Hex sha256 of settings by value."""
    return digest(settings.model_dump(mode="json"))

"""Define settings and captions of the tiny experiment that tests evaluate."""

from pathlib import Path

from sid_core.config import Baseline, BaselineSettings, Evaluate, GenerateSettings, Sampling, reference_settings
from sid_core.evaluation.features import build_reference

SAMPLES = 20
CAPTIONS = [f"a dot number {i % 7}" for i in range(SAMPLES)]


def sampling(**changes) -> Sampling:
    return Sampling(**({"batch": 8, "seed": 0} | changes))


def generate_settings(num_steps: int = 1, **changes) -> GenerateSettings:
    return GenerateSettings(t_init=625, num_steps=num_steps, sampling=sampling(**changes))


def baseline_settings(kind: str, split: str = "evaluation", **changes) -> BaselineSettings:
    baseline = Baseline(name=kind, kind=kind, **changes)
    return BaselineSettings(baseline=baseline, split=split, sampling=sampling())


def build(evaluate: Evaluate, out: Path, *rest) -> None:
    """Build the features of a protocol's reference images."""
    build_reference(reference_settings(evaluate), out, *rest)

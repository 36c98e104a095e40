"""List the objectives of distillation: one file and one entry of OBJECTIVES each."""

from .base import Batch, Guidance, Networks, Phase, ScoreDistillation, fake_score_loss
from .sid import SiD, generator_loss

OBJECTIVES: dict[str, type[ScoreDistillation]] = {"sid": SiD}

__all__ = [
    "OBJECTIVES",
    "Batch",
    "Guidance",
    "Networks",
    "Phase",
    "ScoreDistillation",
    "SiD",
    "fake_score_loss",
    "generator_loss",
]

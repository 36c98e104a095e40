"""Compute the method by pure functions of tensors (arXiv 2406.01561): schedules, generator, objectives."""

from .generator import Steps, n_step, one_step
from .objectives import OBJECTIVES, Batch, Guidance, Networks, Phase, fake_score_loss, generator_loss
from .precision import DTYPES
from .schedule import Schedule, VPSchedule

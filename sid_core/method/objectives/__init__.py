"""List the objectives of distillation: one file and one entry of OBJECTIVES each."""

from .base import Batch, Guidance, Networks, Phase, ScoreDistillation, fake_score_loss
from .diff_instruct import DiffInstruct
from .dmd import DMD
from .real_uid import RealUID
from .sid import SiD, generator_loss

OBJECTIVES = {"sid": SiD, "dmd": DMD, "diff_instruct": DiffInstruct, "real_uid": RealUID}

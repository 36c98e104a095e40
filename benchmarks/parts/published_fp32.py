"""Build the published loop in float32, 1 image per backward pass; for `training_step.py --beside`."""

from functools import partial

import torch
from parts import published

NAME = "published loop, float32, 1 image per backward pass"
build = partial(published.build, dtype=torch.float32, micro_batch=1)

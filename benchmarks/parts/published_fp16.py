"""Build the published loop in float16, 16 images per backward pass; for `training_step.py --beside`."""

from functools import partial

import torch
from parts import published

NAME = "published loop, float16, 16 images per backward pass"
build = partial(published.build, dtype=torch.float16, micro_batch=16)

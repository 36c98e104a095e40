"""Assign samples to the groups of a jackknife, whose sums by group give the sums of every replicate."""

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from .uncertainty import left_out


def members(samples: Tensor, groups: int) -> Tensor:
    """Return the one-hot groups of samples (N, …), float64 (N, G): sample i belongs to group i % G."""
    return one_hot(torch.arange(len(samples), device=samples.device) % groups, groups).double()


def kept(samples: Tensor, groups: int) -> Tensor:
    """Return a mask of the groups in the whole set and in each replicate of `left_out`.

    Shape (1 + 2 G, G), float64; row 0 is the whole set.
    """
    rows = [[group not in left for group in range(groups)] for left in [(), *left_out(groups)]]
    return torch.tensor(rows, dtype=torch.float64, device=samples.device)

"""Groups of samples, which a jackknife leaves out: sums by group become sums over every replicate's samples."""

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from .uncertainty import left_out


def members(samples: Tensor, groups: int) -> Tensor:
    """One-hot groups of samples (N, …), float64 (N, G): sample i belongs to group i % G."""
    return one_hot(torch.arange(len(samples), device=samples.device) % groups, groups).double()


def kept(samples: Tensor, groups: int) -> Tensor:
    """Ones for the groups that the whole set and then each replicate of `left_out` hold, float64 (1 + 2 G, G)."""
    rows = [[group not in left for group in range(groups)] for left in [(), *left_out(groups)]]
    return torch.tensor(rows, dtype=torch.float64, device=samples.device)

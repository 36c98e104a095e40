"""Assign samples to the groups of a jackknife, whose sums by group give the sums of every replicate."""

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from .uncertainty import Estimate, jackknife, left_out


def assign(samples: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    """Assign sample i of samples (N, …) to group i % G.

    Returns:
        The groups one-hot, (N, G), and a mask (1 + 2 G, G) of the groups in the whole set and in each replicate, float64.
    """
    members = one_hot(torch.arange(len(samples), device=samples.device) % groups, groups).double()
    rows = [[group not in left for group in range(groups)] for left in [(), *left_out(groups)]]
    return members, torch.tensor(rows, dtype=torch.float64, device=samples.device)


def estimate(values: Tensor) -> Estimate:
    """Estimate a metric from its values (1 + 2 G,) on the whole set and on each replicate."""
    value, *replicates = values.tolist()
    return jackknife(value, replicates)

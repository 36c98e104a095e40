"""Compute KID and CMMD, squared distances between kernel means, each with a delete-a-group jackknife.

A mean over pairs of the retained samples comes from sums by group, so the jackknife costs little beside the kernel.
Features and embeddings are float32 (N, D), one row a sample.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from .catalogue import CMMD_SCALE, CMMD_SIGMA
from .groups import assign, estimate
from .uncertainty import Estimate

ROWS = 200  # of a kernel matrix at once: with 10,000 columns they stay in a processor's cache


def kid(generated: Tensor, reference: Tensor, subsets: int, subset_size: int, seed: int, groups: int) -> Estimate:
    """Compute the Kernel Inception Distance (arXiv 1801.01401), with a cubic kernel, as an unbiased mean over subsets.

    Subsets and value are those of torch-fidelity, which does not return the contribution of each sample.
    """
    member, keep = assign(generated, groups)
    draw = np.random.RandomState(seed)
    total = torch.zeros(len(keep), dtype=torch.float64, device=generated.device)
    for _ in range(subsets):
        chosen, others = (torch.from_numpy(draw.choice(len(x), subset_size, False)) for x in (generated, reference))
        x, y, of_x = generated[chosen], reference[others], member[chosen]
        within, across, between = _cubic(x, x).fill_diagonal_(0), _cubic(x, y), _cubic(y, y).fill_diagonal_(0)
        count = (keep @ of_x.sum(0)).clamp(min=2)  # subsets of a dozen may lose all but one
        total += (keep @ (of_x.T @ within @ of_x) * keep).sum(1) / (count * (count - 1))
        total += between.sum() / (subset_size * (subset_size - 1))
        total -= 2 * (keep @ (of_x.T @ across.sum(1))) / (count * subset_size)
    return estimate(total / subsets)


def cmmd(generated: Tensor, reference: Tensor, groups: int) -> Estimate:
    """Compute CMMD (arXiv 2401.09603) of CLIP embeddings (N, E) and (M, E), rows of unit length.

    It is 1000 times the squared distance between RBF kernel means (sigma 10); pairs of a row and itself are included.
    """
    member, keep = assign(generated, groups)
    count, real = keep @ member.sum(0), len(reference)
    within = _sums(generated, generated, lambda block: block @ member.float())  # (N, G)
    sums = (_sums(x, reference, lambda block: block.sum(1, dtype=torch.float64)) for x in (generated, reference))
    across, between = sums
    totals = (keep @ (member.T @ within) * keep).sum(1) / count**2
    totals += between.sum() / real**2 - 2 * (keep @ (member.T @ across)) / (count * real)
    return estimate(CMMD_SCALE * totals)


def _cubic(x: Tensor, y: Tensor) -> Tensor:
    """Compute the cubic kernel (x . y / D + 1)^3, float64 (N, M)."""
    return (x @ y.T / x.shape[1] + 1).double().pow(3)


def _sums(x: Tensor, y: Tensor, reduce: Callable[[Tensor], Tensor]) -> Tensor:
    """Apply `reduce` to exp(-|x - y|^2 / 2 sigma^2) - 1 in blocks of rows of x, as float64.

    The 1 drops out of the distance, and without it float32 keeps its digits: the kernel is never below 0.98.
    """
    return torch.cat([reduce(_kernel_less_one(block, y)).double() for block in x.split(ROWS)])


def _kernel_less_one(x: Tensor, y: Tensor) -> Tensor:
    """Compute the RBF kernel minus 1 for rows of unit length.

    exp(u) - 1 is computed by its series, exact to 3e-11 at |u| <= 0.02: torch's expm1 takes 4 times as long.
    """
    u = (x @ y.T).sub_(1).div_(CMMD_SIGMA**2)
    series = u / 4
    for term in (3, 2, 1):
        series.add_(1).mul_(u / term)
    return series

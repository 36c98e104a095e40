"""Compute precision, recall, density and coverage from distances to the k-th nearest neighbours.

Precision and recall are arXiv 1904.06991's, density and coverage arXiv 2002.09797's. All four come from one pass over the
distances, in blocks of rows, with a delete-a-group jackknife of the generated samples. torch-fidelity has the first two,
without the contributions of samples that an interval needs.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from ...errors import UserError
from .groups import assign, estimate
from .uncertainty import Estimate

ROWS = 500  # whose distances to the other set are held at once: 500 x 10,000 float32 are 20 MB
SPARE = 8  # neighbours stored beyond the k-th, to replace those that are left out


class Neighbours(NamedTuple):
    precision: Estimate
    recall: Estimate
    density: Estimate
    coverage: Estimate


def neighbours(generated: Tensor, reference: Tensor, k: int, groups: int) -> Neighbours:
    """Compute the four metrics of features (N, D) and (M, D); a UserError unless N and M exceed k."""
    smaller = min(len(generated), len(reference))
    if k >= smaller:
        raise UserError(f"evaluate.neighbours={k}: expected less than the {smaller} images of the smaller set")
    member, keep = assign(generated, groups)
    balls = _generated_balls(generated, k, member, keep)
    widest = balls.max(1).values
    hits = torch.zeros(len(generated), dtype=torch.float64, device=generated.device)  # reference balls around a sample
    covered, recalled = [], []
    for start in range(0, len(reference), ROWS):
        rows = reference[start : start + ROWS]
        # k + 1: a row is its own nearest neighbour; kthvalue is slower
        radius = torch.cdist(rows, reference).topk(k + 1, largest=False).values[:, -1]
        distance = torch.cdist(rows, generated)
        inside = distance <= radius[:, None]
        hits += inside.sum(0)
        covered.append(inside.float() @ member.float() @ keep.T.float() > 0)
        recalled.append(_any_ball(distance, balls, widest))
    precision, density = (_mean(values, member, keep) for values in (hits > 0, hits / k))
    recall, coverage = (estimate(torch.cat(blocks).double().mean(0)) for blocks in (recalled, covered))
    return Neighbours(precision, recall, density, coverage)


def _generated_balls(generated: Tensor, k: int, member: Tensor, keep: Tensor) -> Tensor:
    """Compute the k-th neighbour radii (N, 1 + 2 G) in the whole set and in each replicate; -1 if the sample is left out.

    If more than SPARE of a sample's neighbours are left out, which takes few and large groups, its last one counts.
    """
    neighbours = min(k + 1 + SPARE, len(generated))
    holds = (member @ keep.T).bool()  # (N, 1 + 2 G)
    radii = []
    for block in generated.split(ROWS):
        near = torch.cdist(block, generated).topk(neighbours, largest=False)  # sorted
        rank = holds[near.indices].cumsum(1)  # (rows, neighbours, 1 + 2 G)
        place = (rank < k + 1).sum(1).clamp(max=neighbours - 1)
        radii.append(near.values.gather(1, place))
    return torch.cat(radii).masked_fill(~holds, -1)


def _any_ball(distance: Tensor, balls: Tensor, widest: Tensor) -> Tensor:
    """Return whether each row is within any sample's radius, (rows, 1 + 2 G), in the whole set and in each replicate."""
    row, sample = (distance <= widest).nonzero(as_tuple=True)  # few
    inside = distance[row, sample, None] <= balls[sample]
    return torch.zeros(len(distance), balls.shape[1], device=distance.device).index_add_(0, row, inside.float()) > 0


def _mean(values: Tensor, member: Tensor, keep: Tensor) -> Estimate:
    """Estimate the mean of values (N,) over samples."""
    return estimate(keep @ (member.T @ values.double()) / (keep @ member.sum(0)))

"""Compute the Frechet distance between Gaussian fits, its uncertainty and its infinite-sample limit.

FID (arXiv 1706.08500, eq. 6) is |mu_1 - mu_2|^2 + tr(S_1 + S_2 - 2 (S_1 S_2)^1/2). With S_1 = F^T F, the trace of the
square root is the sum of square roots of the eigenvalues of F S_2 F^T, a symmetric matrix: faster than scipy's Schur
form (benchmarks/frechet.py), real by construction, at any rank. With the reference as S_1, F is computed once for all
the distances that a standard error and an extrapolation need.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce
from operator import sub
from typing import NamedTuple

import torch
from torch import Tensor

from .uncertainty import Estimate, jackknife, left_out

# FID_inf uses every sample at sizes N, N/2 and N/4, averaged over the disjoint parts.
PARTS = 4
# The limit's interval is that of the parabola through the three points: the line leaves a bias of 1 / N^2, as large as the
# standard error at 16 samples a feature. With D the distances, the parabola's intercept is 8/3 D(N) - 2 D(N/2) + 1/3 D(N/4).
# Of the sum over pairs of samples in FID's error it takes those of different halves 8/3 times, those of one half but not one
# quarter -4/3 times: the variance of pairs is 1/2 * (8/3)^2 + 1/4 * (4/3)^2 times that of FID. Sums over samples stay as they are.
PARABOLA_PAIRS = 4.0


@dataclass(frozen=True)
class Moments:
    """Sums over samples, from which those of a subset can be subtracted: count, x (D,) and x x^T (D, D), float64."""

    count: int
    first: Tensor
    second: Tensor

    @classmethod
    def from_rows(cls, features: Tensor) -> "Moments":
        """Accumulate the moments of features (N, D), centred so that sums of squares lose no digits to cancellation."""
        x = features.double()
        return cls(len(x), x.sum(0), x.T @ x)

    def __add__(self, other: "Moments") -> "Moments":
        return Moments(self.count + other.count, self.first + other.first, self.second + other.second)

    def __sub__(self, other: "Moments") -> "Moments":
        return Moments(self.count - other.count, self.first - other.first, self.second - other.second)

    def gaussian(self) -> "Gaussian":
        """Return the Gaussian fit: mean and unbiased covariance (ddof = 1) of at least two samples."""
        assert self.count > 1, f"{self.count} sample: a covariance needs at least 2"
        centred = self.second - torch.outer(self.first, self.first) / self.count
        return Gaussian(self.first / self.count, centred / (self.count - 1), min(self.count - 1, len(self.first)))


@dataclass(frozen=True)
class Gaussian:
    """Mean (D,) and covariance (D, D), float64; `rank` is the most that the covariance can have."""

    mean: Tensor
    covariance: Tensor
    rank: int

    @classmethod
    def fit(cls, features: Tensor) -> "Gaussian":
        """Fit a Gaussian to features (N, D), N at least 2."""
        shift = features.double().mean(0)
        centred = Moments.from_rows(features.double() - shift).gaussian()
        return cls(centred.mean + shift, centred.covariance, centred.rank)


class Reference:
    """One side of many Frechet distances."""

    def __init__(self, gaussian: Gaussian):
        self.gaussian = gaussian
        values, vectors = torch.linalg.eigh(gaussian.covariance)  # ascending
        # rounding leaves tiny eigenvalues, some negative, beyond the rank
        self._factor = (vectors * values.clamp(min=0).sqrt()).T[-gaussian.rank :]  # (rank, D), S = F^T F

    def distance(self, other: Gaussian) -> float:
        """Compute the squared Frechet distance, which rounding may make negative between equal fits."""
        product = self._factor @ other.covariance @ self._factor.T
        values = torch.linalg.eigvalsh((product + product.T) / 2)
        # the square root of rounding, 1e-16, is 1e-8: eigenvalues beyond the rank of the product are dropped, not clipped
        root_trace = values[-min(self.gaussian.rank, other.rank) :].clamp(min=0).sqrt().sum()
        traces = self.gaussian.covariance.trace() + other.covariance.trace()
        return float((self.gaussian.mean - other.mean).square().sum() + traces - 2 * root_trace)


class Fid(NamedTuple):
    """FID of a sample set at its size, and its limit for infinitely many samples (FID_inf)."""

    sample: Estimate
    infinity: Estimate


def fid(features: Tensor, reference: Reference, groups: int) -> Fid:
    """Compute FID of features (N, D) and its linear extrapolation in 1 / N, with a jackknife of 3 to N / 2 groups.

    A bootstrap would be biased upward: repeated samples shrink the covariance.
    """
    shift = reference.gaussian.mean
    x = features.double() - shift

    def distance(moments: Moments) -> float:
        fitted = moments.gaussian()
        return reference.distance(Gaussian(fitted.mean + shift, fitted.covariance, fitted.rank))

    value, replicates = with_replicates(x, groups, distance)
    line, parabola = _infinity(x, value, distance)
    return Fid(jackknife(value, replicates), jackknife(line, replicates, PARABOLA_PAIRS, parabola))


def with_replicates(x: Tensor, groups: int, metric: Callable[[Moments], float]) -> tuple[float, list[float]]:
    """Compute a metric of the moments of x (N, D), and its replicates by a jackknife."""
    whole, parts = Moments.from_rows(x), [Moments.from_rows(x[group::groups]) for group in range(groups)]
    replicates = [metric(reduce(sub, (parts[group] for group in left), whole)) for left in left_out(groups)]
    return metric(whole), replicates


def _infinity(x: Tensor, value: float, distance: Callable[[Moments], float]) -> tuple[float, float]:
    """Extrapolate FID at N, N/2 and N/4, over 1 / N, to infinitely many samples: intercepts of a line and of a parabola.

    The line is arXiv 1911.07023's. The smaller sizes are means over disjoint parts that together hold every sample, so the
    three share their sampling noise, of which little enters the slope.
    """
    quarters = [Moments.from_rows(x[part::PARTS]) for part in range(PARTS)]
    halves = [quarters[0] + quarters[2], quarters[1] + quarters[3]]
    at_half = math.fsum(distance(part) for part in halves) / 2
    at_quarter = math.fsum(distance(part) for part in quarters) / PARTS
    # weights of the line's intercept by least squares over 1/N, 2/N, 4/N
    return value + 0.5 * at_half - 0.5 * at_quarter, (8 * value - 6 * at_half + at_quarter) / 3

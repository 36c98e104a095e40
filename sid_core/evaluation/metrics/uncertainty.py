"""Estimate standard errors, 95 % intervals and paired differences from values on subsets or resamples: replicates.

Only the samples vary: captions and noise drawn anew, with generator, reference images and sample size fixed. A metric that is
biased at this size, as FID is, has its interval around its expectation at this size. Measured coverage: docs/uncertainty.md.
Nothing here needs torch, so that a comparison in a terminal costs no seconds of imports.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

LEVEL = 0.95
GROUPS = 20  # of a jackknife, if there are twice as many samples
JACKKNIFE, BOOTSTRAP = "jackknife", "bootstrap"
# The pairs' share of the plain jackknife's variance is at most a half. Interactions count sums over triples as pairs too, which
# nearest neighbours bring in: with the half, 91 % of the intervals for a difference in coverage hold it.
MOST_PAIRS = 0.45


@dataclass(frozen=True)
class Estimate:
    """A metric of a sample set, or a difference of two."""

    value: float
    se: float
    low: float  # of the 95 % interval
    high: float
    method: str  # replicates: `jackknife`, values without some groups of samples; `bootstrap`, of resamples
    replicates: tuple[float, ...]
    quadratic: float = 1.0  # of `jackknife`

    def __sub__(self, other: "Estimate") -> "Estimate":
        """Return the paired difference: replicate r of both leaves out, or draws, the same sample indices."""
        assert self.method == other.method, f"{self.method} and {other.method}: no pairs of replicates"
        value = self.value - other.value
        replicates = [a - b for a, b in zip(self.replicates, other.replicates, strict=True)]
        return from_replicates(self.method, value, replicates, self.quadratic, self.centre - other.centre)

    @property
    def centre(self) -> float:
        """Return the centre of the interval: the value, except for FID_inf and for skewed bootstraps."""
        return (self.low + self.high) / 2

    @property
    def excludes_zero(self) -> bool:
        return self.low > 0 or self.high < 0


def left_out(groups: int) -> list[tuple[int, ...]]:
    """Return the groups that each of the 2 G replicates leaves out: each group, then each with the next one.

    Sample i belongs to group i % G, so that a trend along the indices enters every group alike.
    """
    return [(group,) for group in range(groups)] + [(group, (group + 1) % groups) for group in range(groups)]


def jackknife(
    value: float, replicates: Sequence[float], quadratic: float = 1.0, centre: float | None = None
) -> Estimate:
    """Compute a delete-a-group jackknife, corrected for terms quadratic in the samples, with Student's t of G - 1 degrees.

    A metric's error is a sum over samples and, where that is small (FID of a good generator), a sum over pairs of them. The
    plain jackknife, (G - 1) / G sum (v_g - mean)^2, counts the variance of the second twice. Interactions of two groups,
    G v - (G - 1) (v_g + v_h) + (G - 2) v_gh, have twice that variance and nothing of the first (Efron and Stein 1981).

    Args:
        replicates: values without the groups of `left_out`.
        quadratic: by how much the pairs' variance is larger than in the replicates; 1 but for FID_inf.
        centre: of the interval; default: the value.
    """
    groups = len(replicates) // 2
    single, double = replicates[:groups], replicates[groups:]
    plain = (groups - 1) ** 2 / groups * _variance(single)
    interactions = [
        groups * value - (groups - 1) * (single[g] + single[g - groups + 1]) + (groups - 2) * double[g]
        for g in range(groups)
    ]
    pairs = min(_variance(interactions) / 2, MOST_PAIRS * plain)
    se = math.sqrt(plain - 2 * pairs + quadratic * pairs)
    half = _student(groups - 1) * se
    centre = value if centre is None else centre
    return Estimate(value, se, centre - half, centre + half, JACKKNIFE, tuple(replicates), quadratic)


def from_replicates(
    method: str, value: float, replicates: Sequence[float], quadratic: float, centre: float
) -> Estimate:
    """Compute the interval of replicates made by `method`; a bootstrap has its centre in them."""
    return bootstrap(value, replicates) if method == BOOTSTRAP else jackknife(value, replicates, quadratic, centre)


def bootstrap(value: float, means: Sequence[float]) -> Estimate:
    """Compute the percentile interval and the standard error of the means of resamples."""
    count = len(means)
    centre = math.fsum(means) / count
    se = math.sqrt(math.fsum((m - centre) ** 2 for m in means) / count)
    ordered = sorted(means)
    low, high = (_quantile(ordered, p) for p in ((1 - LEVEL) / 2, (1 + LEVEL) / 2))
    return Estimate(value, se, low, high, BOOTSTRAP, tuple(means))


def mean_of_few(values: Sequence[float]) -> Estimate:
    """Estimate the mean of at least 2 independent values, such as one per training seed, with Student's t."""
    mean = math.fsum(values) / len(values)
    se = math.sqrt(_variance(values) / len(values))
    half = _student(len(values) - 1) * se
    return Estimate(mean, se, mean - half, mean + half, "values", tuple(values))


def mean_over_seeds(differences: Sequence[Estimate]) -> Estimate:
    """Estimate the mean of paired differences, one per training seed: other seeds and other samples.

    All seeds have the same captions and noise, so the samples' error is common to them and their spread does not show it.
    Half widths of both intervals add in squares; what each seed's samples have of their own counts in both.
    """
    seeds, first = mean_of_few([one.value for one in differences]), differences[0]
    replicates = [
        math.fsum(values) / len(values) for values in zip(*(one.replicates for one in differences), strict=True)
    ]
    centre = math.fsum(one.centre for one in differences) / len(differences)
    samples = from_replicates(first.method, seeds.value, replicates, first.quadratic, centre)
    low, high = (
        samples.centre + sign * math.hypot(seeds.high - seeds.value, end - samples.centre)
        for sign, end in ((-1, samples.low), (1, samples.high))
    )
    return Estimate(seeds.value, math.hypot(seeds.se, samples.se), low, high, "seeds", ())


def _variance(values: Sequence[float]) -> float:
    mean = math.fsum(values) / len(values)
    return math.fsum((v - mean) ** 2 for v in values) / (len(values) - 1)


def _student(degrees: int) -> float:
    """Return the half width of the interval in standard errors."""
    from scipy.special import stdtrit

    return float(stdtrit(degrees, (1 + LEVEL) / 2))


def _quantile(ordered: Sequence[float], p: float) -> float:
    """Interpolate a quantile linearly between order statistics, as numpy does by default."""
    position = p * (len(ordered) - 1)
    below = math.floor(position)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (position - below) * (ordered[above] - ordered[below])

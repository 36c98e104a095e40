"""Measure how often a 95 % interval covers its target, on simulated samples of a known distribution.

    OMP_NUM_THREADS=1 python benchmarks/coverage_of_intervals.py [--repeats 1000]

Each case draws the samples of a generator anew, a thousand times, beside one reference, and counts the intervals that hold
the target: for FID_inf and means over samples the known value, for a metric that depends on the number of samples its mean
over all repeats. `se` is the mean standard error by the spread of the values: 1 is right. `paired` rows are differences of
two generators that share their noise. docs/uncertainty.md says what follows.
"""

import argparse
import math
import statistics
from collections import defaultdict
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import normalize

from sid_core.evaluation.metrics.frechet import Gaussian, Reference, fid
from sid_core.evaluation.metrics.kernels import cmmd, kid
from sid_core.evaluation.metrics.neighbours import neighbours
from sid_core.evaluation.metrics.samples import clip_score, vendi
from sid_core.evaluation.metrics.uncertainty import (
    Estimate,
    jackknife,
    left_out,
    mean_of_few,
    mean_over_seeds,
)

GROUPS = 20
# one experiment: the estimates of one draw, and the targets that are known
Experiment = Callable[[torch.Generator], dict[str, Estimate]]


def frechet(d: int, n: int, shift: float, scale: float, relu: bool = False) -> tuple[Experiment, dict[str, float]]:
    """Compare N(shift, scale^2 I) with N(0, I); a second generator adds noise and has the same distance from the reference.

    With `relu`, features are max(x, 0), as an Inception network's are: no Gaussian.
    """
    mean, spread = torch.zeros(d, dtype=torch.float64), torch.eye(d, dtype=torch.float64)
    if relu:  # of max(x, 0): 1 / sqrt(2 pi), and 1/2 - 1 / (2 pi)
        mean, spread = mean + 1 / math.sqrt(2 * math.pi), spread * (0.5 - 1 / (2 * math.pi))
    reference = Reference(Gaussian(mean, spread, d))
    truth = d * (shift**2 + (scale - 1) ** 2)

    def draw(generator: torch.Generator) -> dict[str, Estimate]:
        z, other = (torch.randn(n, d, generator=generator, dtype=torch.float64) for _ in range(2))
        a, b = shift + scale * z, shift + scale * (0.8 * z + 0.6 * other)
        first, second = (fid(x.clamp(min=0) if relu else x, reference, GROUPS) for x in (a, b))
        return {"fid": first.sample, "fid_inf": first.infinity, "fid, paired": first.sample - second.sample}

    return draw, {"fid, paired": 0.0} | ({} if relu else {"fid_inf": truth})


def of_pairs(n: int) -> tuple[Experiment, dict[str, float]]:
    """Simulate CLIP scores as skewed cosines; a second generator shares half of the variance and scores 0.005 more."""

    def embeddings(cosines: Tensor) -> tuple[Tensor, Tensor]:
        angle = cosines.clamp(-1, 1).arccos()
        return torch.stack([angle.cos(), angle.sin()], 1), torch.tensor([[1.0, 0.0]]).expand(len(cosines), 2)

    def draw(generator: torch.Generator) -> dict[str, Estimate]:
        u, v, w = (torch.rand(n, generator=generator, dtype=torch.float64) for _ in range(3))
        first, second = (
            clip_score(*embeddings(0.2 + 0.1 * (u**3 + x**3) + more), 1000) for x, more in ((v, 0), (w, 0.005))
        )
        return {"clip": first, "clip, paired": first - second}

    return draw, {"clip": 0.25, "clip, paired": -0.005}


def of_sets(d: int, n: int, shift: float, scale: float) -> tuple[Experiment, dict[str, float]]:
    """Simulate all other metrics: N(shift, scale^2 I) against 500 samples of N(0, I); embeddings are their directions."""
    reference = torch.randn(500, d, generator=torch.Generator().manual_seed(0))
    around = torch.ones(d)  # directions have a mean, as CLIP's have

    def estimates(x: Tensor) -> dict[str, Estimate]:
        unit = normalize(x + around, dim=1)
        return {
            "kid": kid(x, reference, 5, 100, 0, GROUPS),
            **neighbours(x, reference, 3, GROUPS)._asdict(),
            "cmmd": cmmd(unit, normalize(reference + around, dim=1), GROUPS),
            "vendi": vendi(unit, GROUPS),
        }

    def draw(generator: torch.Generator) -> dict[str, Estimate]:
        z, other = (torch.randn(n, d, generator=generator) for _ in range(2))
        a, b = shift + scale * z, shift + scale * (0.8 * z + 0.6 * other)
        first, second = estimates(a), estimates(b)
        return first | {f"{name}, paired": first[name] - second[name] for name in first}

    return draw, {}


def of_seeds(seeds: int) -> tuple[Experiment, dict[str, float]]:
    """Simulate means over training seeds with normal scores around 3."""

    def draw(generator: torch.Generator) -> dict[str, Estimate]:
        return {"mean over seeds": mean_of_few((3 + torch.randn(seeds, generator=generator)).tolist())}

    return draw, {"mean over seeds": 3.0}


def of_seeds_and_samples(seeds: int, count: int) -> tuple[Experiment, dict[str, float]]:
    """Simulate differences over seeds whose spread equals the error of the samples that they share."""

    def draw(generator: torch.Generator) -> dict[str, Estimate]:
        of_seed = 0.3 + torch.randn(seeds, 1, generator=generator) / math.sqrt(count)
        own = torch.randn(seeds, count, generator=generator) / 2
        values = of_seed + torch.randn(count, generator=generator) + own
        group = torch.arange(count) % GROUPS
        kept = [~torch.isin(group, torch.tensor(left)) for left in left_out(GROUPS)]
        differences = [jackknife(row.mean().item(), [row[keep].mean().item() for keep in kept]) for row in values]
        return {"difference over seeds": mean_over_seeds(differences)}

    return draw, {"difference over seeds": 0.3}


CASES: dict[str, tuple[Experiment, dict[str, float]]] = {
    "FID 25, d 16, N 1000": frechet(16, 1000, 1.0, 1.75),
    "FID 1.3, d 64, N 1000": frechet(64, 1000, 0.1, 1.1),
    "FID 0, d 64, N 1000": frechet(64, 1000, 0.0, 1.0),
    "FID 15, d 64, N 50": frechet(64, 50, 0.3, 1.4),
    "ReLU, d 64, N 1000": frechet(64, 1000, 0.2, 1.2, relu=True),
    "pairs, N 300": of_pairs(300),
    "sets, d 8, N 300": of_sets(8, 300, 0.3, 0.8),
    "equal sets, d 8, N 300": of_sets(8, 300, 0.0, 1.0),
    "3 seeds": of_seeds(3),
    "3 seeds, N 300": of_seeds_and_samples(3, 300),
}


def measure(experiment: Experiment, known: dict[str, float], repeats: int) -> dict[str, tuple[float, float]]:
    """Return by metric the fraction of intervals that cover the target, and the mean standard error / standard deviation."""
    draws: dict[str, list[Estimate]] = defaultdict(list)
    for repeat in range(repeats):
        for name, estimate in experiment(torch.Generator().manual_seed(1 + repeat)).items():
            draws[name].append(estimate)
    rows = {}
    for name, estimates in draws.items():
        values = [estimate.value for estimate in estimates]
        target = known.get(name, statistics.fmean(values))
        covered = statistics.fmean(estimate.low <= target <= estimate.high for estimate in estimates)
        rows[name] = covered, statistics.fmean(e.se for e in estimates) / statistics.stdev(values)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=1000)
    arguments = parser.parse_args()
    print("| case | metric | covered | se |\n|---|---|--:|--:|")
    for case, (experiment, known) in CASES.items():
        for name, (covered, ratio) in measure(experiment, known, arguments.repeats).items():
            print(f"| {case} | {name} | {100 * covered:.1f} % | {ratio:.2f} |", flush=True)


if __name__ == "__main__":
    main()

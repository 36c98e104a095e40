"""Compare speed and accuracy of the Frechet distance by symmetric eigenvalues with scipy's matrix square root.

    OMP_NUM_THREADS=1 python benchmarks/frechet.py [--features 2048] [--repeats 3]

Both get the same means and covariances (float64) of two sets of correlated features whose spectrum falls by 10^6, as that of
Inception features does; runs alternate A B A B after a warm-up, medians are shown. `ours` includes the factor of the
reference; `ours again` is a further distance to the same reference, as a jackknife needs by the dozen.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from scipy.linalg import sqrtm

from sid_core.evaluation.metrics.frechet import Gaussian, Reference


def correlated_features(n: int, d: int, seed: int) -> torch.Tensor:
    """Sample n rows with a power-law spectrum in a random basis and a random mean."""
    generator = torch.Generator().manual_seed(seed)
    scale = torch.logspace(0, -3, d, dtype=torch.float64)
    basis = torch.linalg.qr(torch.randn(d, d, generator=torch.Generator().manual_seed(0), dtype=torch.float64))[0]
    spread = 1 + 0.3 * torch.rand(d, generator=generator, dtype=torch.float64)
    x = torch.randn(n, d, generator=generator, dtype=torch.float64) * scale * spread
    return x @ basis.T + 0.05 * seed


def by_scipy(first: Gaussian, second: Gaussian) -> float:
    """Compute the textbook formula as clean-fid does."""
    difference = (first.mean - second.mean).numpy()
    s1, s2 = first.covariance.numpy(), second.covariance.numpy()
    return float(difference @ difference + np.trace(s1) + np.trace(s2) - 2 * np.trace(sqrtm(s1 @ s2)).real)


def timed(function: Callable[[], float]) -> tuple[float, float]:
    began_s = time.perf_counter()
    value = function()
    return time.perf_counter() - began_s, value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--features", type=int, default=2048)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    d = arguments.features
    first, second = (Gaussian.fit(correlated_features(3 * d, d, seed)) for seed in (1, 2))
    reference = Reference(first)
    ways = {
        "scipy sqrtm": lambda: by_scipy(first, second),
        "ours": lambda: Reference(first).distance(second),
        "ours again": lambda: reference.distance(second),
    }
    by_scipy(*(Gaussian.fit(correlated_features(300, 64, seed)) for seed in (1, 2)))  # warm-up: threads, libraries
    reference.distance(second)

    seconds: dict[str, list[float]] = {name: [] for name in ways}
    values: dict[str, float] = {}
    for _ in range(arguments.repeats):
        for name, way in ways.items():
            elapsed_s, values[name] = timed(way)
            seconds[name].append(elapsed_s)

    baseline = statistics.median(seconds["scipy sqrtm"])
    print(f"{d} features, {torch.get_num_threads()} threads, {arguments.repeats} repeats")
    print(
        f"{'':12} {'median s':>9} {'min s':>8} {'max s':>8} {'ratio':>7} {'distance':>16} {'relative difference':>20}"
    )
    for name, times in seconds.items():
        median, apart = statistics.median(times), abs(values[name] / values["scipy sqrtm"] - 1)
        shown = f"{median:9.2f} {min(times):8.2f} {max(times):8.2f} {baseline / median:6.1f}x"
        print(f"{name:12} {shown} {values[name]:16.10f} {apart:20.1e}")


if __name__ == "__main__":
    main()

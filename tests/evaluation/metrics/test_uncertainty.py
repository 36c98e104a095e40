"""Test identities of intervals, and a small part of benchmarks/coverage_of_intervals.py."""

import math
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from sid_core.evaluation.metrics.uncertainty import (
    Estimate,
    bootstrap,
    jackknife,
    left_out,
    mean_of_few,
    mean_over_seeds,
)

GROUPS = 20
ROOT = Path(__file__).parents[3]


def numbers(n: int, seed: int = 0) -> list[float]:
    generator = random.Random(seed)
    return [generator.gauss(3, 2) for _ in range(n)]


def replicates(values: list[float], metric, groups: int = GROUPS) -> list[float]:
    return [metric([v for i, v in enumerate(values) if i % groups not in left]) for left in left_out(groups)]


def mean(values: list[float]) -> float:
    return math.fsum(values) / len(values)


def test_jackknife_of_a_mean_gives_the_textbook_interval():
    values = numbers(200)
    found = jackknife(mean(values), replicates(values, mean))
    groups = [mean(values[group::GROUPS]) for group in range(GROUPS)]
    textbook = mean_of_few(groups)
    assert (found.se, found.low, found.high) == pytest.approx((textbook.se, textbook.low, textbook.high))
    assert textbook.high - textbook.value == pytest.approx(2.0930 * textbook.se, rel=1e-4)


def test_jackknife_of_quadratic_terms_counts_them_once():
    # N times the squared length of the mean of n vectors N(0, I_30) has variance 60; the plain jackknife says twice that.
    found, plain = [], []
    for seed in range(100):
        rows = np.random.default_rng(seed).normal(size=(100, 30))

        def metric(part):
            return float(100 * np.square(np.mean(part, axis=0)).sum())

        parts = replicates(rows, metric)
        found.append(jackknife(metric(rows), parts).se ** 2)
        plain.append((GROUPS - 1) ** 2 / GROUPS * np.var(parts[:GROUPS], ddof=1))
    assert np.mean(plain) > 110
    assert np.mean(found) == pytest.approx(60, rel=0.3)


def test_difference_pairs_equal_samples():
    values, other = numbers(200), numbers(200, 1)
    for kind in (jackknife, bootstrap):
        a, b = (
            kind(mean(v), replicates(v, mean))
            for v in (values, [v + 0.1 + 0.01 * o for v, o in zip(values, other, strict=True)])
        )
        assert (b - a).value == pytest.approx(mean(other) / 100 + 0.1)
        assert (b - a).se < 0.05 * a.se
        assert (b - a).excludes_zero
        assert not (a - a).excludes_zero


def test_bootstrap_percentiles_equal_numpy():
    values = numbers(101)
    found = bootstrap(0.0, values)
    assert (found.low, found.high) == pytest.approx(tuple(np.percentile(values, [2.5, 97.5])))
    assert found.se == pytest.approx(np.std(values))


def test_mean_of_few_uses_student_t():
    found = mean_of_few([1.0, 2.0, 3.0])
    assert (found.value, found.se) == pytest.approx((2, 1 / math.sqrt(3)))
    assert found.high - found.value == pytest.approx(4.3027 / math.sqrt(3), rel=1e-4)


def estimated(values: list[float], kind) -> Estimate:
    if kind is jackknife:
        return jackknife(mean(values), replicates(values, mean))
    draws = [random.Random(draw).choices(range(len(values)), k=len(values)) for draw in range(200)]
    return bootstrap(mean(values), [mean([values[i] for i in draw]) for draw in draws])


@pytest.mark.parametrize("kind", [jackknife, bootstrap])
def test_mean_over_seeds_adds_both_errors_in_squares(kind):
    values = numbers(200)
    one = estimated(values, kind)
    same = mean_over_seeds([one, one, one])
    assert (same.value, same.se, same.low, same.high) == pytest.approx((one.value, one.se, one.low, one.high))
    apart = mean_over_seeds([estimated([value + shift for value in values], kind) for shift in (-1, 0, 1)])
    assert (apart.value, apart.se) == pytest.approx((one.value, math.hypot(one.se, 1 / math.sqrt(3))))
    half = 4.3027 / math.sqrt(3)
    assert apart.high - one.centre == pytest.approx(math.hypot(half, one.high - one.centre), rel=1e-4)
    assert one.centre - apart.low == pytest.approx(math.hypot(half, one.centre - one.low), rel=1e-4)


def test_uncertainty_imports_no_torch():
    code = (
        "import sys, sid_core.evaluation.comparison; assert 'torch' not in sys.modules and 'numpy' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("case", ["FID 25, d 16, N 1000", "pairs, N 300", "3 seeds, N 300"])
def test_intervals_have_their_coverage(case, monkeypatch):
    # 200 draws: 95 % come out as 90.5 to 98.5 % in 99 of 100 tries; the benchmark's 1,000 are in docs/uncertainty.md.
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import coverage_of_intervals as benchmark

    for name, (covered, ratio) in benchmark.measure(*benchmark.CASES[case], repeats=200).items():
        assert 0.905 <= covered <= 0.99, name
        assert 0.85 < ratio < 1.15, name

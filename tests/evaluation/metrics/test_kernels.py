import numpy as np
import pytest
import torch

from sid_core.evaluation.metrics.kernels import cmmd, kid
from sid_core.evaluation.metrics.uncertainty import left_out

GROUPS = 5


def normal(n: int, d: int, seed: int) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


def unit(n: int, d: int, seed: int) -> torch.Tensor:
    return torch.nn.functional.normalize(normal(n, d, seed) + 1, dim=1)


def test_kid_equals_the_unbiased_mmd_of_the_cubic_kernel():
    x, y = normal(60, 5, 0) + 0.4, normal(60, 5, 1)

    def kernel(a, b):
        return (a.double() @ b.double().T / 5 + 1) ** 3

    def off_diagonal_mean(k):
        return (k.sum() - k.trace()) / (60 * 59)

    expected = off_diagonal_mean(kernel(x, x)) + off_diagonal_mean(kernel(y, y)) - 2 * kernel(x, y).mean()
    assert kid(x, y, 3, 60, 0, GROUPS).value == pytest.approx(float(expected), rel=1e-4)


def test_kid_equals_torch_fidelity():
    from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, kid_features_to_metric

    x, y = normal(200, 5, 0) + 0.2, normal(300, 5, 1)
    for seed in (2020, 7):
        options = {"kid_subsets": 10, "kid_subset_size": 50, "rng_seed": seed, "verbose": False}
        theirs = kid_features_to_metric(x, y, **options)[KEY_METRIC_KID_MEAN]
        assert kid(x, y, 10, 50, seed, GROUPS).value == pytest.approx(theirs, rel=1e-4)
    assert kid(x, y, 10, 50, 2020, GROUPS) == kid(x, y, 10, 50, 2020, GROUPS)


def test_replicates_equal_the_metric_without_their_groups():
    # With subsets that are the whole set, and for CMMD always.
    x, y = normal(40, 4, 0), normal(40, 4, 1) + 0.3
    a, b = unit(40, 4, 0), unit(30, 4, 1)
    found, distance = kid(x, y, 1, 40, 0, GROUPS), cmmd(a, b, GROUPS)
    for left, value, other in zip(left_out(GROUPS), found.replicates, distance.replicates, strict=True):
        rest = [i for i in range(40) if i % GROUPS not in left]
        kernel = [
            ((p.double() @ q.double().T / 4 + 1) ** 3).numpy() for p, q in ((x[rest], x[rest]), (y, y), (x[rest], y))
        ]
        within, between = ((k.sum() - np.trace(k)) / (len(k) * (len(k) - 1)) for k in kernel[:2])
        assert value == pytest.approx(within + between - 2 * kernel[2].mean(), rel=1e-5)
        assert other == pytest.approx(cmmd(a[rest], b, 3).value, abs=1e-5)


def test_cmmd_equals_its_paper():
    # The authors' code: biased, sigma 10, times 1000.
    x, y = unit(40, 6, 0).double(), unit(30, 6, 1).double()

    def mean_kernel(a, b):
        return float(torch.exp(-torch.cdist(a, b).square() / 200).mean())

    expected = 1000 * (mean_kernel(x, x) + mean_kernel(y, y) - 2 * mean_kernel(x, y))
    assert cmmd(x.float(), y.float(), GROUPS).value == pytest.approx(expected, rel=1e-4)
    assert abs(cmmd(x.float(), x.float(), GROUPS).value) < 1e-6

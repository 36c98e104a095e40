import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm

from sid_core.evaluation.metrics.frechet import Gaussian, Moments, Reference, fid


def gaussian(n: int, d: int, seed: int) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


def fitted(features: torch.Tensor) -> Reference:
    return Reference(Gaussian.fit(features))


def normal(mean: torch.Tensor, covariance: torch.Tensor) -> Gaussian:
    return Gaussian(mean.double(), covariance.double(), len(mean))


def distance(mean_1, covariance_1, mean_2, covariance_2) -> float:
    return Reference(normal(mean_1, covariance_1)).distance(normal(mean_2, covariance_2))


def test_distance_of_identical_features_in_any_order_is_0():
    x = gaussian(500, 32, 0) * torch.linspace(0.1, 3, 32) + 5
    shuffled = x[torch.randperm(500, generator=torch.Generator().manual_seed(1))]
    assert abs(fid(x, fitted(x), 5).sample.value) < 1e-6
    assert abs(fid(shuffled, fitted(x), 5).sample.value) < 1e-6


def test_distance_of_known_moments_equals_the_formula():
    eye, zero = torch.eye(64), torch.zeros(64)
    assert distance(zero, eye, zero + 0.5, 4 * eye) == pytest.approx(80, abs=1e-9)
    s1, s2 = torch.tensor([[1.0, 0], [0, 4]]), torch.tensor([[3.0, 2], [2, 8]])
    assert distance(torch.zeros(2), s1, torch.tensor([3.0, 4]), s2) == pytest.approx(26.4550979625, abs=1e-9)
    none, four = torch.zeros(4, 4), torch.zeros(4)
    assert distance(four, none, four + 1, none) == pytest.approx(4, abs=1e-9)
    assert distance(four, none, four + 1, torch.eye(4)) == pytest.approx(8, abs=1e-9)


def test_distance_with_exchanged_sides_is_equal():
    a, b = gaussian(100, 8, 0), gaussian(100, 8, 1) * 2 + 1
    assert fid(a, fitted(b), 5).sample.value == pytest.approx(fid(b, fitted(a), 5).sample.value, rel=1e-9)


def test_distance_of_one_dimension_equals_the_formula():
    x, y = torch.tensor([[1.0], [2.0], [3.0]]), torch.tensor([[4.0], [8.0], [6.0]])
    # mean 6, std 2 against mean 2, std 1: (6 - 2)^2 + (2 - 1)^2
    assert fitted(x).distance(Gaussian.fit(y)) == pytest.approx(17, abs=1e-9)


def test_covariance_equals_numpy():
    x = gaussian(50, 6, 0) + 3
    assert np.allclose(Gaussian.fit(x).covariance, np.cov(x.double().numpy(), rowvar=False), atol=1e-12)
    part = Moments.from_rows(x) - Moments.from_rows(x[:10])
    assert np.allclose(part.gaussian().covariance, np.cov(x[10:].double().numpy(), rowvar=False), atol=1e-11)


def test_distance_equals_scipy_and_torch_fidelity():
    from torch_fidelity.metric_fid import fid_statistics_to_metric

    x, y = (
        gaussian(400, 48, 0).double().numpy(),
        gaussian(400, 48, 1).double().numpy() @ np.diag(np.linspace(0.3, 2, 48)),
    )
    (m1, s1), (m2, s2) = ((z.mean(0), np.cov(z, rowvar=False)) for z in (x, y))
    expected = ((m1 - m2) ** 2).sum() + np.trace(s1 + s2 - 2 * sqrtm(s1 @ s2).real)
    ours = distance(*map(torch.from_numpy, (m1, s1, m2, s2)))
    assert ours == pytest.approx(expected, rel=1e-10)
    theirs = fid_statistics_to_metric({"mu": m1, "sigma": s1}, {"mu": m2, "sigma": s2}, verbose=False)
    assert ours == pytest.approx(theirs["frechet_inception_distance"], rel=1e-6)


def test_distance_equals_clean_fid(monkeypatch):
    from cleanfid import fid as clean

    # SciPy 1.18 took away the argument that clean-fid calls it with
    monkeypatch.setattr(
        clean.linalg, "sqrtm", lambda matrix, disp=True: sqrtm(matrix) if disp else (sqrtm(matrix), 0.0)
    )
    x, y = gaussian(500, 32, 0), 1.5 * gaussian(400, 32, 1) + 0.2
    moments = [(z.double().numpy().mean(0), np.cov(z.double().numpy(), rowvar=False)) for z in (x, y)]
    assert fitted(x).distance(Gaussian.fit(y)) == pytest.approx(
        clean.frechet_distance(*moments[0], *moments[1]), rel=1e-9
    )


def test_distance_of_rank_deficient_covariances_equals_the_nuclear_norm():
    # Tr (S1 S2)^1/2 is the sum of singular values of X1 X2^T / sqrt((n1 - 1) (n2 - 1)), X centred.
    x, y = gaussian(20, 64, 0).double(), gaussian(30, 64, 1).double() + 0.2
    cx, cy = x - x.mean(0), y - y.mean(0)
    root_trace = torch.linalg.svdvals(cx @ cy.T).sum() / (19 * 29) ** 0.5
    squares = cx.square().sum() / 19 + cy.square().sum() / 29
    expected = (x.mean(0) - y.mean(0)).square().sum() + squares - 2 * root_trace
    assert fid(x, fitted(y), 5).sample.value == pytest.approx(float(expected), abs=1e-6)
    assert abs(fid(x, fitted(x), 5).sample.value) < 1e-6


@pytest.mark.parametrize(("n", "expected"), [(500, 4.416), (2000, 1.104), (4000, 0.552)])
def test_fid_of_equal_distributions_has_the_known_bias(n, expected):
    # About (d + d (d + 1) / 4) (1 / N1 + 1 / N2), d = 64.
    assert fid(gaussian(n, 64, 0), fitted(gaussian(n, 64, 1)), 5).sample.value == pytest.approx(expected, rel=0.08)


def test_fid_inf_removes_the_bias():
    exact = Reference(normal(torch.zeros(64), torch.eye(64)))
    for n in (2000, 4000):
        measured = fid(gaussian(n, 64, n), exact, 5)
        assert measured.sample.value == pytest.approx(1104 / n, rel=0.08)
        assert abs(measured.infinity.value) < 0.1 * measured.sample.value


def test_standard_error_equals_the_deviation_of_repetitions():
    # 20 groups leave the estimate itself a relative spread of about 16 %; its mean over repetitions is compared.
    reference = Reference(normal(torch.zeros(8), torch.eye(8)))
    measured = [fid(gaussian(400, 8, seed) * 1.3 + 0.3, reference, 20) for seed in range(100)]
    spread = np.std([m.sample.value for m in measured], ddof=1)
    assert np.mean([m.sample.se for m in measured]) == pytest.approx(spread, rel=0.25)


def test_fid_of_repeated_samples_barely_changes():
    # Why seeds and image hashes are checked: FID itself would not tell.
    x, reference = gaussian(1000, 16, 0) + 0.5, fitted(gaussian(1000, 16, 1))
    assert fid(x.repeat(2, 1), reference, 5).sample.value == pytest.approx(fid(x, reference, 5).sample.value, rel=1e-2)

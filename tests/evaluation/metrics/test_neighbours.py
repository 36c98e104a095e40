import pytest
import torch

from sid_core.errors import UserError
from sid_core.evaluation.metrics.neighbours import neighbours
from sid_core.evaluation.metrics.uncertainty import left_out

GROUPS = 5


def normal(n: int, d: int, seed: int) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


def by_definition(x: torch.Tensor, y: torch.Tensor, k: int) -> list[float]:
    """Compute precision, recall, density, coverage of x against the reference y, with whole matrices in float64."""
    x, y = x.double(), y.double()
    distances = torch.cdist(x, y)
    radius_x, radius_y = (torch.cdist(z, z).kthvalue(k + 1, dim=1).values for z in (x, y))
    in_y = distances <= radius_y
    values = in_y.any(1), (distances <= radius_x[:, None]).any(0), in_y.sum(1) / k, in_y.any(0)
    return [float(value.double().mean()) for value in values]


def test_neighbours_does_not_exchange_precision_and_recall():
    # A generator that knows one of two modes is precise and lacks recall; one that adds a mode is the other way round.
    one, other = normal(300, 4, 0), normal(300, 4, 1) + 50
    both = torch.cat([normal(300, 4, 2), normal(300, 4, 3) + 50])
    found = neighbours(one, both, 3, GROUPS)
    assert found.precision.value > 0.8
    assert 0.4 < found.recall.value < 0.55
    assert 0.4 < found.coverage.value < 0.55
    found = neighbours(both, other, 3, GROUPS)
    assert 0.4 < found.precision.value < 0.55
    assert found.recall.value > 0.8
    assert found.coverage.value > 0.8


def test_neighbours_equals_torch_fidelity_and_the_definitions():
    # In more rows than one block.
    from torch_fidelity.metric_prc import prc_features_to_metric

    x, y = normal(1200, 3, 0), normal(700, 3, 1) * 1.5
    found = neighbours(x, y, 3, GROUPS)
    theirs = prc_features_to_metric(x, y, prc_neighborhood=3, prc_batch_size=500, save_cpu_ram=True, verbose=False)
    assert found.precision.value == pytest.approx(theirs["precision"], abs=1e-6)
    assert found.recall.value == pytest.approx(theirs["recall"], abs=1e-6)
    assert [metric.value for metric in found] == pytest.approx(by_definition(x, y, 3), abs=2e-3)


def test_replicates_equal_the_metrics_without_their_groups():
    x, y = normal(100, 3, 0), normal(80, 3, 1) * 1.2
    found = neighbours(x, y, 3, GROUPS)
    for replicate, left in enumerate(left_out(GROUPS)):
        rest = [i for i in range(100) if i % GROUPS not in left]
        values = [metric.replicates[replicate] for metric in found]
        assert values == pytest.approx(by_definition(x[rest], y, 3), abs=0.013), left  # one row of 80 by rounding


def test_neighbours_of_a_second_draw_gives_density_and_coverage_near_one():
    # Coverage of k = 5 is 1 - 2^-5 (arXiv 2002.09797, eq. 9).
    found = neighbours(normal(1000, 8, 0), normal(1000, 8, 1), 5, GROUPS)
    assert found.density.value == pytest.approx(1, abs=0.05)
    assert found.coverage.value == pytest.approx(1 - 2**-5, abs=0.02)


def test_neighbours_of_fewer_images_raises():
    with pytest.raises(UserError, match=r"neighbours=3.*3 images"):
        neighbours(normal(3, 3, 0), normal(20, 3, 1), 3, GROUPS)

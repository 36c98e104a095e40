import pytest
import torch

from sid_core.errors import UserError
from sid_core.evaluation.features import check_finite
from sid_core.evaluation.metrics import check_samples, clip_score, kid, precision_recall


def normal(n: int, d: int, seed: int) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


def test_clip_score_of_planted_pairs():
    unit = torch.nn.functional.normalize(normal(500, 64, 0), dim=1)
    assert clip_score(unit, unit, 10)[0] == pytest.approx(1, abs=1e-6)
    assert abs(clip_score(unit, unit.roll(1, 0), 10)[0]) < 0.02


def test_clip_score_is_a_mean_over_samples():
    """30000 % 64 = 48: a mean of batch means would weigh the last batch's samples more. Here 100 of cosine 0, 7 of 1."""
    image = torch.tensor([[1.0, 0.0]]).repeat(107, 1)
    text = torch.cat([torch.tensor([[0.0, 1.0]]).repeat(100, 1), torch.tensor([[1.0, 0.0]]).repeat(7, 1)])
    assert clip_score(image, text, 10)[0] == pytest.approx(7 / 107, abs=1e-12)


def test_clip_scores_error_is_that_of_a_mean():
    image = torch.nn.functional.normalize(normal(400, 8, 0), dim=1)
    text = torch.nn.functional.normalize(normal(400, 8, 1), dim=1)
    cosines = (image * text).sum(1)
    assert clip_score(image, text, 2000)[1] == pytest.approx(float(cosines.std()) / 20, rel=0.1)
    assert clip_score(image, text, 50) == clip_score(image, text, 50)


def test_kid_is_the_unbiased_mmd_of_the_cubic_kernel():
    x, y = normal(60, 5, 0) + 0.4, normal(60, 5, 1)

    def kernel(a, b):
        return (a.double() @ b.double().T / 5 + 1) ** 3

    def off_diagonal_mean(k):
        return (k.sum() - k.trace()) / (60 * 59)

    expected = off_diagonal_mean(kernel(x, x)) + off_diagonal_mean(kernel(y, y)) - 2 * kernel(x, y).mean()
    assert kid(x, y, subsets=3, subset_size=60, seed=0) == pytest.approx(float(expected), rel=1e-4)


def test_kid_repeats_exactly():
    x, y = normal(200, 5, 0) + 0.2, normal(300, 5, 1)
    assert kid(x, y, 10, 50, 2020) == kid(x, y, 10, 50, 2020)
    assert kid(x, y, 10, 50, 2020) != kid(x, y, 10, 50, 7)


def test_precision_and_recall_are_not_exchanged():
    """A generator that knows one of two modes is precise and lacks recall; one that adds a mode is the other way round."""
    one, other = normal(300, 4, 0), normal(300, 4, 1) + 50
    both = torch.cat([normal(300, 4, 2), normal(300, 4, 3) + 50])
    precision, recall = precision_recall(one, both, 3)
    assert precision > 0.8
    assert 0.4 < recall < 0.55
    precision, recall = precision_recall(both, other, 3)
    assert 0.4 < precision < 0.55
    assert recall > 0.8


def test_more_rows_than_one_block_change_nothing():
    x, y = normal(1200, 3, 0), normal(700, 3, 1) * 1.5
    distances = torch.cdist(x.double(), y.double())
    radius_y = torch.cdist(y.double(), y.double()).kthvalue(4, dim=1).values
    radius_x = torch.cdist(x.double(), x.double()).kthvalue(4, dim=1).values
    expected = (distances <= radius_y).any(1).double().mean(), (radius_x >= distances.T).any(1).double().mean()
    assert precision_recall(x, y, 3) == pytest.approx([float(value) for value in expected], abs=2e-3)


def test_sets_too_small_for_the_settings_are_refused():
    with pytest.raises(UserError, match=r"kid_subset_size=1000.*50 images"):
        kid(normal(50, 3, 0), normal(2000, 3, 1), 10, 1000, 0)
    with pytest.raises(UserError, match=r"neighbours=3.*3 images"):
        precision_recall(normal(3, 3, 0), normal(20, 3, 1), 3)


def test_features_that_are_not_finite_are_named():
    features = normal(6, 3, 0)
    features[[2, 3], 1] = torch.tensor([torch.nan, torch.inf])
    with pytest.raises(UserError, match=r"00000\.safetensors: features of samples 102–103 are not finite"):
        check_finite(features, torch.arange(100, 106), "00000.safetensors")
    check_finite(features[:2], torch.arange(2), "x")


def samples(count: int) -> list[dict]:
    return [{"index": i, "seed": i, "sha256": f"{i:x}"} for i in range(count)]


def test_a_whole_set_in_any_order_passes():
    check_samples(samples(20)[::-1], 20)


def test_missing_samples_are_named():
    with pytest.raises(UserError, match=r"samples missing: 3, 10–14 \(6 of 20\)"):
        check_samples([s for s in samples(20) if s["index"] not in (3, 10, 11, 12, 13, 14)], 20)


def test_samples_too_many_are_named():
    with pytest.raises(UserError, match=r"samples 4 are too many"):
        check_samples([*samples(20), samples(20)[4]], 20)
    with pytest.raises(UserError, match=r"samples 20 are too many"):
        check_samples(samples(21), 20)


@pytest.mark.parametrize(("key", "what"), [("seed", "seed"), ("sha256", "image")])
def test_repeated_seeds_and_images_are_named(key, what):
    repeated = samples(20)
    repeated[9][key] = repeated[2][key]
    with pytest.raises(UserError, match=f"samples 2 and 9 have the same {what}"):
        check_samples(repeated, 20)

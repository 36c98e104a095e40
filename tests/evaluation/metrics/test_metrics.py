import numpy as np
import pytest
import torch
from scipy.spatial.distance import pdist

from sid_core.errors import UserError
from sid_core.evaluation.features import check_finite
from sid_core.evaluation.metrics.samples import check_samples, clip_score, diversity, mean, repeated_captions, vendi


def normal(n: int, d: int, seed: int) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


def test_clip_score_of_planted_pairs_gives_their_cosine():
    unit = torch.nn.functional.normalize(normal(500, 64, 0), dim=1)
    assert clip_score(unit, unit, 10).value == pytest.approx(1, abs=1e-6)
    assert abs(clip_score(unit, unit.roll(1, 0), 10).value) < 0.02


def test_clip_score_equals_the_mean_over_samples():
    # 30000 % 64 = 48: a mean of batch means would weigh the last batch's samples more. Here 100 of cosine 0, 7 of 1.
    image = torch.tensor([[1.0, 0.0]]).repeat(107, 1)
    text = torch.cat([torch.tensor([[0.0, 1.0]]).repeat(100, 1), torch.tensor([[1.0, 0.0]]).repeat(7, 1)])
    assert clip_score(image, text, 10).value == pytest.approx(7 / 107, abs=1e-12)


def test_clip_score_has_the_error_of_a_mean():
    image = torch.nn.functional.normalize(normal(400, 8, 0), dim=1)
    text = torch.nn.functional.normalize(normal(400, 8, 1), dim=1)
    cosines = (image * text).sum(1)
    assert clip_score(image, text, 2000).se == pytest.approx(float(cosines.std()) / 20, rel=0.1)
    assert clip_score(image, text, 50) == clip_score(image, text, 50)


def test_mean_of_equal_counts_draws_the_same_samples():
    # Hence the difference of two means is a paired one: of a run and itself with a constant added, it has no spread.
    values = normal(50, 1, 0)[:, 0]
    difference = mean(values + 1, 100) - mean(values, 100)
    assert difference.value == pytest.approx(1)
    assert difference.se < 1e-6
    assert difference.excludes_zero


def test_vendi_counts_different_images():
    # 7 directions, each as often as the others; a crowd of one is one.
    directions = torch.eye(16)[:7].repeat(40, 1)
    assert vendi(directions, 5).value == pytest.approx(7)
    assert vendi(directions[:1].repeat(40, 1), 5).value == pytest.approx(1)
    rows = torch.nn.functional.normalize(normal(40, 16, 0), dim=1).double()
    values = torch.linalg.eigvalsh(rows @ rows.T / 40).clamp(min=1e-300)
    assert vendi(rows, 5).value == pytest.approx(float((-(values * values.log()).sum()).exp()))


def test_diversity_equals_the_mean_distance_of_pairs_of_each_caption():
    captions = ["a", "b", "a", "c", "a", "b", "d"]
    features = normal(7, 5, 0)
    distances = {
        caption: pdist(features.double().numpy()[[i for i, other in enumerate(captions) if other == caption]]).mean()
        for caption in "ab"
    }
    numbers = repeated_captions(captions)
    assert numbers.tolist() == [0, 1, 0, -1, 0, 1, -1]
    found = diversity(features, numbers)
    assert found.value == pytest.approx(np.mean(list(distances.values())), rel=1e-12)
    # two captions: a resample holds one of them alone, or both
    assert (found.low, found.high) == pytest.approx(tuple(sorted(distances.values())), rel=1e-12)
    assert diversity(features[:1].repeat(7, 1), numbers).value == 0


def test_repeated_captions_of_fewer_than_two_is_none():
    assert repeated_captions(["a", "a", "b"]) is None


def test_check_finite_names_samples():
    features = normal(6, 3, 0)
    features[[2, 3], 1] = torch.tensor([torch.nan, torch.inf])
    with pytest.raises(UserError, match=r"00000\.safetensors: features of samples 102–103 are not finite"):
        check_finite(features, torch.arange(100, 106), "00000.safetensors")
    check_finite(features[:2], torch.arange(2), "x")


def samples(count: int) -> list[dict]:
    return [{"index": i, "seed": i, "sha256": f"{i:x}"} for i in range(count)]


def test_check_samples_of_a_whole_set_in_any_order_passes():
    check_samples(samples(20)[::-1], 20)


def test_check_samples_names_missing_ones():
    with pytest.raises(UserError, match=r"samples missing: 3, 10–14 \(6 of 20\)"):
        check_samples([s for s in samples(20) if s["index"] not in (3, 10, 11, 12, 13, 14)], 20)


def test_check_samples_names_surplus_ones():
    with pytest.raises(UserError, match=r"samples 4 are too many"):
        check_samples([*samples(20), samples(20)[4]], 20)
    with pytest.raises(UserError, match=r"samples 20 are too many"):
        check_samples(samples(21), 20)


@pytest.mark.parametrize(("key", "what"), [("seed", "seed"), ("sha256", "image")])
def test_check_samples_names_repeated_seeds_and_images(key, what):
    repeated = samples(20)
    repeated[9][key] = repeated[2][key]
    with pytest.raises(UserError, match=f"samples 2 and 9 have the same {what}"):
        check_samples(repeated, 20)

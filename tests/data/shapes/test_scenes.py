"""Test that scenes and captions are reproducible in any slice and that captions describe the scenes."""

import time

import numpy as np
import pytest
import torch

from sid_core.data.shapes import captions, scenes


@pytest.mark.parametrize(("n", "start"), [(1, 0), (300, 100), (256, 256), (7, 510)])
def test_draw_of_a_scene_is_independent_of_the_batch(n, start):
    images, texts = scenes.draw("validation", 600)
    part, part_texts = scenes.draw("validation", n, start)
    assert part.shape == (n, 32, 32, 3)
    assert part.dtype == np.uint8
    np.testing.assert_array_equal(part, images[start : start + n])
    assert part_texts == texts[start : start + n]


def test_draw_of_other_splits_differs_and_of_none_is_empty():
    drawn = [scenes.draw(split, 4)[0] for split in scenes.SPLITS]
    assert all((drawn[a] != drawn[b]).any() for a in range(4) for b in range(a))
    images, texts = scenes.draw("train", 0, 10)
    assert images.shape == (0, 32, 32, 3)
    assert texts == []


def test_draw_leaves_the_global_random_stream_alone():
    state = torch.get_rng_state()
    scenes.draw("train", 3)
    assert torch.equal(state, torch.get_rng_state())


def test_draw_of_4000_images_takes_under_a_second():
    scenes.draw("train", 256)
    best_s = min(_seconds(lambda: scenes.draw("train", 1000)) for _ in range(3))
    assert best_s < 0.5  # 0.09 s on an idle core


def _seconds(call):
    started_s = time.perf_counter()
    call()
    return time.perf_counter() - started_s


@pytest.mark.parametrize("kind", range(len(captions.SHAPES)))
def test_render_of_every_shape_is_inside_and_centred(kind):
    drawn = scenes.sample_scenes(1, torch.Generator().manual_seed(0))
    plain = {"kind": kind, "radius": 0.7, "rotation": 0, "x": 0, "y": 0, "stripes": 0, "shading": 0}
    for name, value in plain.items():
        getattr(drawn, name).fill_(value)
    without = scenes.Scenes(**{**vars(drawn), "radius": torch.tensor([1e-3]), "x": torch.tensor([9.0])})
    inside = (scenes.render(drawn).int() - scenes.render(without).int()).abs().sum(dim=1)[0] > 120
    rows, columns = inside.nonzero().T
    assert 0.15 < inside.float().mean() < 0.6
    for found in (rows, columns):  # the middle of what it covers, not of its mass
        assert abs((found.min() + found.max()) / 2 - 15.5) <= 1.5
        assert found.min() > 1
        assert found.max() < 30


def test_captions_follow_the_grammar_and_omit_phrases():
    texts = scenes.draw("train", 4000)[1]
    assert set(texts) <= set(captions.all_captions())
    assert len(set(texts)) > 900
    without_background = sum("background" not in text for text in texts) / len(texts)
    assert abs(without_background - captions.DROPPED_PHRASE) < 0.025


def test_captions_mostly_but_not_always_name_the_nearest_shape():
    _, texts, drawn = scenes.draw_with_scenes("train", 4000)
    nearest = drawn.kind.round().long() % len(captions.SHAPES)
    right = sum(captions.SHAPES[k] in text for k, text in zip(nearest.tolist(), texts, strict=True)) / len(texts)
    assert 0.8 < right < 0.97  # one word in ten is random, and in-betweens are heard either way


def test_all_captions_are_unique():
    assert len(set(captions.all_captions())) == len(captions.all_captions()) == 1152
    assert captions.sentence("circle", "large", "red", "green") == "a large red circle on a green background"
    assert captions.sentence("star") == "a star"

"""Test random streams by key: distinct, and those of a Mersenne Twister whose whole state is the hashed key."""

import hashlib

import numpy as np
import pytest
import torch

from sid_core.data.shapes import scenes
from sid_core.method.randomness import random_stream
from sid_core.training.randomness import rng


def test_rng_over_40000_iterations_repeats_no_stream():
    streams = (
        rng(0, iteration, phase) for iteration in range(40_000) for phase in ("fake", "generator", "grid", "proxy")
    )
    first_draws = {tuple(torch.randn(2, generator=stream, dtype=torch.float64).tolist()) for stream in streams}
    assert len(first_draws) == 160_000


@pytest.mark.parametrize("other", [(1, 23), (12, "3"), (12, 3, 0), (12 + 2**32, 3), (3, 12), ("12", 3)])
def test_random_stream_of_another_key_draws_other_values(other):
    assert not torch.equal(
        torch.randn(8, generator=random_stream(12, 3)), torch.randn(8, generator=random_stream(*other))
    )


def test_random_stream_equals_a_twister_started_from_the_hashed_key():
    reference = np.random.MT19937()
    key = np.frombuffer(hashlib.shake_256(b'[0, 7, "fake"]').digest(4 * 624), "<u4")
    reference.state = {"bit_generator": "MT19937", "state": {"key": key, "pos": 624}}
    drawn = torch.rand(2000, generator=random_stream(0, 7, "fake"))  # a float32 takes the low 24 bits of one word
    np.testing.assert_array_equal(drawn.double().numpy() * 2**24, reference.random_raw(2000) % 2**24)


def test_random_stream_keeps_the_global_stream():
    before = torch.get_rng_state()
    torch.randn(3, generator=random_stream("any"))
    assert torch.equal(before, torch.get_rng_state())


def test_block_seed_of_15000_blocks_differs_in_32_bits():
    """Check the seeds of the shipped weights' scenes: 15,000 blocks are thirty times what a recipe samples."""
    seeds = [scenes._block_seed(split, block) % 2**32 for split in scenes.SPLITS for block in range(15_000)]
    assert len(set(seeds)) == len(seeds)

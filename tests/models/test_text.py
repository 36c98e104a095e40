"""Compare prompt embeddings to Stable Diffusion's, independent of earlier calls."""

import pytest
import torch

from sid_core.models.conditioning import PromptSet
from sid_core.models.text import TextEncoder

PROMPTS = ["a red dot", "a blue dot", "a red dot", "two dots"]


@pytest.fixture(scope="module")
def encoder(tiny_teacher):
    return TextEncoder.from_directory(tiny_teacher)


def test_encode_of_short_prompts_pads_them(encoder):
    tokens = encoder.tokenizer(PROMPTS, padding="max_length", max_length=12, return_tensors="pt").input_ids
    with torch.no_grad():
        torch.testing.assert_close(encoder.encode(PROMPTS).tokens, encoder.model(tokens)[0])
    assert encoder.empty().tokens.shape == (1, 12, 16)


def test_encode_of_a_long_prompt_truncates_it(encoder):
    assert encoder.encode(["a very long prompt of many letters"]).tokens.shape == (1, 12, 16)


@pytest.mark.parametrize("cache_size", [0, 10])
def test_prompt_set_by_index_returns_embeddings(encoder, cache_size):
    prompts = PromptSet(encoder, PROMPTS, cache_size)
    got = prompts(torch.tensor([2, 1]), torch.tensor([False, True])).tokens
    torch.testing.assert_close(got[0], encoder.encode(["a red dot"]).tokens[0])
    torch.testing.assert_close(got[1], encoder.empty().tokens[0])


@pytest.mark.parametrize("cache_size", [0, 10])
def test_prompt_set_copies_to_the_device_from_pinned_memory(encoder, cache_size, monkeypatch):
    """Check that every tensor for the encoder's device is copied by `to_device`, from pinned host memory."""
    prompts, sent = PromptSet(encoder, PROMPTS, cache_size), []
    for module in ("text", "conditioning"):
        monkeypatch.setattr(f"sid_core.models.{module}.to_device", lambda tensor, _: sent.append(tensor) or tensor)
    prompts(torch.tensor([0, 3]), torch.tensor([False, True]))
    assert [len(tensor) for tensor in sent] == [2, 2]  # tokens or embeddings, and which are dropped


@pytest.mark.parametrize("cache_size", [0, 10])
def test_prompt_set_after_other_calls_gives_equal_bits(encoder, cache_size):
    fresh, used = (PromptSet(encoder, PROMPTS, cache_size) for _ in range(2))
    used(torch.tensor([3, 3, 1]))
    indices = torch.tensor([0, 3])
    assert torch.equal(fresh(indices).tokens, used(indices).tokens)


class Endless(list):
    """Prompts that all differ; reading on after `most` of them fails."""

    def __init__(self, most: int):
        super().__init__(f"p {i}" for i in range(100))
        self.most = most

    def __iter__(self):
        for number, prompt in enumerate(super().__iter__(), 1):
            assert number <= self.most, "read on, though the cache cannot hold them"
            yield prompt


@pytest.mark.parametrize("cache_size", [0, 5])
def test_prompt_set_of_more_prompts_than_its_cache_stops_reading(encoder, cache_size):
    prompts = PromptSet(encoder, Endless(cache_size + 1), cache_size)
    assert len(prompts) == 100
    torch.testing.assert_close(prompts(torch.tensor([99])).tokens, encoder.encode(["p 99"]).tokens)

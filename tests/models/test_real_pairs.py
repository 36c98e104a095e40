"""Encode real pairs with the tiny teacher, and read them back."""

import json

import numpy as np
import pytest
import torch

from sid_core.config import Real
from sid_core.data.images import dequantise, shrink
from sid_core.data.shapes import scenes
from sid_core.errors import UserError
from sid_core.models.embeddings import embed_prompts
from sid_core.models.encode_pairs import encode_pairs
from sid_core.models.real_pairs import RealPairs
from sid_core.models.teacher import load_image_codec, load_text_encoder


@pytest.fixture(scope="module")
def encoded(tiny_teacher, tmp_path_factory):
    out = tmp_path_factory.mktemp("results") / "real-pairs"
    encode_pairs(Real(pairs=70), out, tiny_teacher)
    return out


def test_encode_pairs_writes_the_means_of_the_vae(encoded, tiny_teacher):
    images, captions = scenes.draw("real-images", 70)
    small = np.stack([shrink(image, 16) for image in images])
    expected = load_image_codec(tiny_teacher).encode(dequantise(small))
    pairs = RealPairs(encoded, load_text_encoder(tiny_teacher), tiny_teacher)
    assert len(pairs) == 70
    torch.testing.assert_close(pairs.latents, expected)
    assert (encoded / "captions.txt").read_text().splitlines() == captions
    manifest = json.loads((encoded / "manifest.json").read_text())
    assert set(manifest["files"]) == {"latents.safetensors", "captions.txt"}
    assert manifest["record"]["pairs"] == 70


def test_encode_pairs_again_gives_equal_files(encoded, tiny_teacher, tmp_path):
    encode_pairs(Real(pairs=70), tmp_path / "again", tiny_teacher, workers=2)
    assert (tmp_path / "again" / "manifest.json").read_bytes() == (encoded / "manifest.json").read_bytes()


def test_real_pairs_return_latents_and_captions_of_the_indices(encoded, tiny_teacher):
    encoder = load_text_encoder(tiny_teacher)
    pairs, captions = RealPairs(encoded, encoder, tiny_teacher), scenes.draw("real-images", 70)[1]
    dropped = torch.tensor([False, True, False])
    latents, cond = pairs(torch.tensor([69, 3, 0]), dropped)
    assert torch.equal(latents, pairs.latents[[69, 3, 0]])
    torch.testing.assert_close(cond.tokens, encoder.encode([captions[69], "", captions[0]]).tokens)


def test_real_pairs_with_stored_embeddings_return_equal_bits(encoded, tiny_teacher, tmp_path):
    embed_prompts(encoded / "captions.txt", tiny_teacher, tmp_path / "real")
    stored = RealPairs(encoded, None, tiny_teacher, tmp_path / "real")
    plain, indices = RealPairs(encoded, load_text_encoder(tiny_teacher), tiny_teacher), torch.tensor([69, 3, 0])
    assert all(map(torch.equal, stored(indices)[1].parts().values(), plain(indices)[1].parts().values()))


def test_real_pairs_changed_or_of_another_teacher_raise(encoded, tiny_teacher, tmp_path):
    encoder = load_text_encoder(tiny_teacher)
    encode_pairs(Real(pairs=4), tmp_path / "own", tiny_teacher)
    manifest = json.loads((tmp_path / "own" / "manifest.json").read_text())
    manifest["record"]["teacher_sha256"] = "0"
    (tmp_path / "own" / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match="encoded by another teacher"):
        RealPairs(tmp_path / "own", encoder, tiny_teacher)
    (tmp_path / "own" / "captions.txt").write_text("other\n")
    with pytest.raises(UserError, match="differs from its recorded sha256"):
        RealPairs(tmp_path / "own", encoder, tiny_teacher)

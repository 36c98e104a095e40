"""Test the shipped weights: as recorded, small, loadable offline, and consistent with each other."""

import json

import pytest
import torch

from sid_core.data.shapes import ASSETS, captions, scenes
from sid_core.errors import UserError
from sid_core.evaluation.networks.feature_network import FeatureNetwork
from sid_core.storage.files import sha256_file

RECIPE = json.loads((ASSETS / "recipe.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def clip():
    from open_clip import create_model_and_transforms, get_tokenizer

    model, _, preprocess = create_model_and_transforms(f"local-dir:{ASSETS / 'clip'}", require_pretrained=True)
    return model.eval(), preprocess, get_tokenizer(f"local-dir:{ASSETS / 'clip'}")


@pytest.fixture(scope="module")
def tokenizer():
    from transformers import CLIPTokenizer

    return CLIPTokenizer.from_pretrained(ASSETS / "teacher" / "tokenizer")


def test_assets_equal_the_recipe_and_take_at_most_20_mb():
    files = {path.relative_to(ASSETS).as_posix(): path for path in ASSETS.rglob("*") if path.is_file()}
    recorded = {name: entry["sha256"] for name, entry in RECIPE["files"].items()}
    assert {name: sha256_file(path) for name, path in files.items() if name != "recipe.json"} == recorded
    assert sum(path.stat().st_size for path in files.values()) <= 20e6


def test_recipe_of_the_assets_equals_the_code():
    from recipes.build import recipe_digest
    from recipes.settings import RecipeSettings

    assert RECIPE["digest"] == recipe_digest(RecipeSettings())


def test_recipe_records_the_required_quality():
    quality = RECIPE["quality"]
    teacher = {float(name.split("-")[-1]): scores for name, scores in quality.items() if name.startswith("teacher")}
    best = min(scores["fid"] for scores in teacher.values())
    assert quality["vae"]["fid"] <= best / 2
    assert teacher[4.5]["fid"] > best
    assert teacher[1.5]["clip"] < teacher[2]["clip"] < teacher[3]["clip"]
    flow = {float(name.split("-")[-1]): scores for name, scores in quality.items() if name.startswith("flow")}
    assert flow[1.5]["clip"] < flow[2]["clip"] < flow[3]["clip"]


def test_tokenizer_of_the_assets_has_one_token_per_word(tokenizer):
    assert len(tokenizer) < 100
    assert tokenizer.eos_token_id == tokenizer.pad_token_id == len(tokenizer) - 1
    for word in {word for text in captions.all_captions() for word in text.split()}:
        assert tokenizer.tokenize(word) == [f"{word}</w>"]


def test_tokenizer_decodes_every_caption(tokenizer):
    texts = captions.all_captions()
    ids = tokenizer(texts, padding="max_length", truncation=True).input_ids
    assert {len(row) for row in ids} == {tokenizer.model_max_length} == {12}
    assert [tokenizer.decode(row, skip_special_tokens=True) for row in ids] == texts
    assert tokenizer([""]).input_ids == [[len(tokenizer) - 2, len(tokenizer) - 1]]


def test_text_encoder_equals_the_text_tower_of_clip(clip, tokenizer):
    from transformers import CLIPTextModel

    model, _, clip_tokenizer = clip
    texts = ["a circle", "a large red star on a green background", ""]
    tokens = clip_tokenizer(texts)
    ours = tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt").input_ids
    assert torch.equal(tokens, ours)
    encoder = CLIPTextModel.from_pretrained(ASSETS / "teacher" / "text_encoder").eval()
    with torch.no_grad():
        hidden = encoder(tokens)
        x = model.token_embedding(tokens) + model.positional_embedding
        expected = model.ln_final(model.transformer(x, attn_mask=model.attn_mask))
        torch.testing.assert_close(hidden.last_hidden_state, expected, rtol=1e-4, atol=1e-5)
        pooled = hidden.pooler_output @ model.text_projection
        torch.testing.assert_close(pooled, model.encode_text(tokens), rtol=1e-4, atol=1e-5)


def test_clip_prefers_the_right_caption(clip):
    from PIL import Image

    model, preprocess, clip_tokenizer = clip
    images, texts = scenes.draw("validation", 200)
    batch = torch.stack([preprocess(Image.fromarray(image)) for image in images])
    with torch.no_grad():
        seen = model.encode_image(batch, normalize=True)
        similar = seen @ model.encode_text(clip_tokenizer(texts), normalize=True).T
    assert similar.diag().mean() > similar.mean() + 0.2


def test_features_are_standardised_and_do_not_forgive_noise():
    network = FeatureNetwork.from_directory(ASSETS / "features")
    images = torch.from_numpy(scenes.draw("validation", 500)[0]).permute(0, 3, 1, 2).float()
    features = network(images)
    assert features.shape == (500, 64)
    assert features.dtype == torch.float32
    assert features.mean(dim=0).abs().max() < 0.3
    assert (features.std(dim=0) - 1).abs().max() < 0.3
    noisy = network((images + 16 * torch.randn(images.shape, generator=torch.Generator().manual_seed(0))).clamp(0, 255))
    assert (noisy - features).square().sum(dim=1).mean() > 0.05 * features.square().sum(dim=1).mean()


def test_load_feature_network_of_another_folder_names_it(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        FeatureNetwork.from_directory(tmp_path)
    network = FeatureNetwork(8, [8, 8], 4)
    network.save(tmp_path)
    images = torch.rand(3, 3, 8, 8) * 255
    assert torch.equal(FeatureNetwork.from_directory(tmp_path)(images), network(images))
    (tmp_path / "model.safetensors").write_bytes(b"cut short")
    with pytest.raises(UserError, match="not a feature network"):
        FeatureNetwork.from_directory(tmp_path)
    (tmp_path / "config.json").write_text('{"image_size": 8}')
    with pytest.raises(UserError, match=r"config\.json: 'channels' is missing, beside image_size"):
        FeatureNetwork.from_directory(tmp_path)

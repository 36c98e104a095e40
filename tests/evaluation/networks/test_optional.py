"""Test optional networks, tiny and random in the published layouts, against their authors' code."""

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file, save_file
from serving import Server
from small import CAPTIONS, SAMPLES, build, generate_settings
from tiny_parts import HPS_SIZES, REWARD_WORDS, dinov2, hps, imagereward, pickscore

from sid_core.config import FeatureSettings
from sid_core.data.shards import read_shard
from sid_core.errors import UserError
from sid_core.evaluation.features import extract_features
from sid_core.evaluation.features import stored as stored_image
from sid_core.evaluation.networks import optional
from sid_core.evaluation.networks.weights import BERT, prepare_networks
from sid_core.evaluation.scoring import score
from sid_core.sampling.generation import generate
from sid_core.storage.files import read_json, sha256_file, sidecar

METRICS = {"dinov2": "fd_dinov2", "hps": "hps", "pickscore": "pickscore", "imagereward": "imagereward"}
TEXTS = ["a red circle", "Two blue squares, on green."]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("extras")
    return {
        "dinov2": dinov2(folder / "dinov2"),
        "hps": hps(folder / "hps"),
        "pickscore": pickscore(folder / "pickscore"),
        "imagereward": imagereward(folder / "imagereward"),
    }


@pytest.fixture(scope="module", autouse=True)
def tiny_hps():
    import open_clip

    with pytest.MonkeyPatch.context() as patch:
        open_clip.factory._MODEL_CONFIGS["tiny-hps"] = HPS_SIZES
        patch.setattr(optional, "HPS_MODEL", "tiny-hps")
        yield
        del open_clip.factory._MODEL_CONFIGS["tiny-hps"]


def settings(folders, *keys: str, **changes) -> FeatureSettings:
    return FeatureSettings(batch=2, **{key: {"source": str(folders[key])} | changes for key in keys})


def pictures(count: int = 2, side: int = 40) -> list[np.ndarray]:
    return list(np.random.default_rng(0).integers(0, 256, (count, side, side, 3), dtype=np.uint8))


def rows(folders, key: str) -> torch.Tensor:
    [extra] = optional.optional_networks(settings(folders, key))
    assert extra.column == key
    return extra.rows([extra.prepare(image) for image in pictures()], TEXTS)


def seen_by_clip(image: np.ndarray, side: int) -> torch.Tensor:
    """Preprocess by CLIPProcessor's steps: PIL's bicubic, 0 to 1, OpenAI's mean and standard deviation."""
    small = np.asarray(Image.fromarray(image).resize((side, side), Image.Resampling.BICUBIC)) / 255
    normed = (small - [0.48145466, 0.4578275, 0.40821073]) / [0.26862954, 0.26130258, 0.27577711]
    return torch.from_numpy(normed).permute(2, 0, 1).float()


def hub_positions(positions: torch.Tensor) -> torch.Tensor:
    """Resize positions as torch.hub does, written out: cubic convolution (a = -0.75) on 37 places, sampled at (i + 0.5) 37 / 16.1 - 0.5, edges repeated."""

    def cubic(x: float) -> float:
        a, x = -0.75, abs(x)
        if x <= 1:
            return (a + 2) * x**3 - (a + 3) * x**2 + 1
        return a * (x**3 - 5 * x**2 + 8 * x - 4) if x < 2 else 0.0

    matrix = torch.zeros(16, 37)
    for i in range(16):
        centre = (i + 0.5) * 37 / 16.1 - 0.5
        for place in range(math.floor(centre) - 1, math.floor(centre) + 3):
            matrix[i, min(max(place, 0), 36)] += cubic(centre - place)
    grid = torch.einsum("im, jn, mnd -> ijd", matrix, matrix, positions[0, 1:].view(37, 37, -1))
    return torch.cat([positions[:, :1], grid.reshape(1, 256, -1)], dim=1)


def test_dinov2_gives_the_class_token_of_torch_hub(folders):
    from cleanfid.resize import make_resizer
    from transformers import Dinov2Model

    model = Dinov2Model.from_pretrained(folders["dinov2"]).eval()
    model.embeddings.position_embeddings.data = hub_positions(model.embeddings.position_embeddings.data)
    resize = make_resizer("PIL", False, "bicubic", (224, 224))
    images = [(resize(image) / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225] for image in pictures()]
    with torch.no_grad():
        states = model(torch.tensor(np.stack(images)).permute(0, 3, 1, 2).float()).last_hidden_state
    torch.testing.assert_close(rows(folders, "dinov2"), states[:, 0])


def test_pickscore_equals_its_model_card(folders):
    from transformers import CLIPModel

    model = CLIPModel.from_pretrained(folders["pickscore"]).eval()
    import open_clip

    tokens = open_clip.tokenize(TEXTS)
    # the card's processor pads with the end token, and masks it
    padded = torch.where(tokens == 0, 49407, tokens)
    with torch.no_grad():
        images = torch.stack([seen_by_clip(image, 32) for image in pictures()])
        said = model(input_ids=padded, pixel_values=images, attention_mask=(tokens != 0).long())
    torch.testing.assert_close(rows(folders, "pickscore"), said.logits_per_image.diagonal(), rtol=1e-4, atol=1e-4)


def test_hps_equals_its_script(folders):
    import open_clip

    model = open_clip.CLIP(**HPS_SIZES, output_dict=True).eval()
    weights = torch.load(folders["hps"] / "HPS_v2.1_compressed.pt", weights_only=True)["state_dict"]
    model.load_state_dict(weights)
    with torch.no_grad():
        out = model(torch.stack([seen_by_clip(image, 32) for image in pictures()]), open_clip.tokenize(TEXTS))
    expected = (out["image_features"] @ out["text_features"].T).diagonal()
    torch.testing.assert_close(rows(folders, "hps"), expected)


def reward(weights: dict[str, torch.Tensor], image: torch.Tensor, words: list[str]) -> float:
    """Compute ImageReward of one image and the tokens of its caption, unpadded, from the published layout."""

    def linear(x, name):
        return F.linear(x, weights[f"{name}.weight"], weights[f"{name}.bias"])

    def norm(x, name, eps=1e-12):
        return F.layer_norm(x, x.shape[-1:], weights[f"{name}.weight"], weights[f"{name}.bias"], eps)

    def attend(q, k, v, heads):
        q, k, v = (x.unflatten(-1, (heads, -1)).transpose(0, 1) for x in (q, k, v))
        shares = (q @ k.transpose(1, 2) / q.shape[-1] ** 0.5).softmax(-1)
        return (shares @ v).transpose(0, 1).flatten(1)

    v, t = "blip.visual_encoder", "blip.text_encoder"
    projection = [weights[f"{v}.patch_embed.proj.{name}"] for name in ("weight", "bias")]
    seen = torch.cat([weights[f"{v}.cls_token"][0], F.conv2d(image[None], *projection, stride=16)[0].flatten(1).T])
    seen = seen + weights[f"{v}.pos_embed"][0]
    for block in (f"{v}.blocks.0", f"{v}.blocks.1"):
        attended = attend(*linear(norm(seen, f"{block}.norm1", 1e-6), f"{block}.attn.qkv").chunk(3, dim=-1), heads=2)
        seen = seen + linear(attended, f"{block}.attn.proj")
        hidden = F.gelu(linear(norm(seen, f"{block}.norm2", 1e-6), f"{block}.mlp.fc1"))
        seen = seen + linear(hidden, f"{block}.mlp.fc2")
    seen = norm(seen, f"{v}.norm", 1e-6)
    ids = [REWARD_WORDS.index(word) for word in words]
    x = weights[f"{t}.embeddings.word_embeddings.weight"][ids]
    x = norm(x + weights[f"{t}.embeddings.position_embeddings.weight"][: len(ids)], f"{t}.embeddings.LayerNorm")
    for layer in (f"{t}.encoder.layer.0", f"{t}.encoder.layer.1"):
        for kind in ("attention", "crossattention"):
            source = x if kind == "attention" else seen
            q, k, value = (
                linear(y, f"{layer}.{kind}.self.{name}")
                for y, name in ((x, "query"), (source, "key"), (source, "value"))
            )
            out = linear(attend(q, k, value, heads=3), f"{layer}.{kind}.output.dense")
            x = norm(out + x, f"{layer}.{kind}.output.LayerNorm")
        out = linear(F.gelu(linear(x, f"{layer}.intermediate.dense")), f"{layer}.output.dense")
        x = norm(out + x, f"{layer}.output.LayerNorm")
    x = x[0]
    for index in (0, 2, 4, 6, 7):
        x = linear(x, f"mlp.layers.{index}")
    return (float(x) - 0.16717362830052426) / 1.0333394966054072


def test_imagereward_equals_its_published_forward(folders):
    weights = torch.load(folders["imagereward"] / "ImageReward.pt", weights_only=True)
    images = [seen_by_clip(image, 32) for image in pictures()]
    words = [["a", "red", "circle"], ["two", "blue", "square", "##s", ",", "[UNK]", "[UNK]", "."]]
    expected = [reward(weights, x, ["[CLS]", *text, "[SEP]"]) for x, text in zip(images, words, strict=True)]
    assert abs(expected[0] - expected[1]) > 0.01
    assert abs(reward(weights, images[0], ["[CLS]", *words[1], "[SEP]"]) - expected[0]) > 0.01
    torch.testing.assert_close(rows(folders, "imagereward"), torch.tensor(expected), rtol=1e-4, atol=1e-5)


def test_imagereward_of_a_pickle_with_code_is_rejected(folders, tmp_path):
    folder = shutil.copytree(folders["imagereward"], tmp_path / "harmful")
    torch.save({"blip": Path("x")}, folder / "ImageReward.pt")
    with pytest.raises(UserError, match=r"evaluate\.imagereward: .*UnpicklingError.*get it again"):
        optional.optional_networks(settings({"imagereward": folder}, "imagereward"))


def test_score_with_optional_networks_has_their_metrics(
    folders, tiny_generator, tiny_teacher, captions, evaluate_settings, tmp_path
):
    plain = evaluate_settings(caption_prefix="A photo depicts ")
    full = evaluate_settings(
        caption_prefix="A photo depicts ", **{key: {"source": str(folder)} for key, folder in folders.items()}
    )
    generate(generate_settings(), tiny_generator, tiny_teacher, captions, 0, SAMPLES, tmp_path / "00000.tar")
    scores = {}
    for name, chosen in (("plain", plain), ("full", full)):
        reference, features = tmp_path / f"{name}-reference.safetensors", tmp_path / f"{name}.safetensors"
        build(chosen.evaluate, reference)
        extract_features(chosen.evaluate, tmp_path / "00000.tar", captions, features)
        score(chosen, [features], reference, captions, tmp_path / name / "score.json")
        scores[name] = read_json(tmp_path / name / "score.json")
    assert scores["full"]["protocol_hash"] == scores["plain"]["protocol_hash"]
    assert scores["full"]["fid"] == scores["plain"]["fid"]
    assert scores["full"]["not_computed"].keys() == {"fid_teacher", "patch_fid"}
    stored = load_file(tmp_path / "full.safetensors")
    for key, metric in METRICS.items():
        low, high = scores["full"]["intervals"][metric]
        assert low <= scores["full"][metric] <= high
        network = optional.optional_networks(settings(folders, key))[0]
        assert scores["full"]["recipes"][metric]["weights"] == network.record["weights"]
        assert len(stored[key]) == SAMPLES
    assert scores["full"]["hps"] == pytest.approx(float(stored["hps"].mean()))
    # each image with its own caption, which has no prefix here
    [hps_network] = optional.optional_networks(
        full.evaluate.model_copy(update={"dinov2": None, "pickscore": None, "imagereward": None})
    )
    [(_, images)] = read_shard(tmp_path / "00000.tar", SAMPLES)
    prepared = [hps_network.prepare(stored_image(image, full.evaluate)) for image in images]
    torch.testing.assert_close(stored["hps"], hps_network.rows(prepared, CAPTIONS))
    assert set(read_json(sidecar(tmp_path / "full-reference.safetensors"))["record"]["extras"]) == {"dinov2"}

    with pytest.raises(UserError, match=r"made with another feature network, CLIP, DINOv2"):
        score(
            full, [tmp_path / "full.safetensors"], _other_dinov2(tmp_path, full, folders), captions, tmp_path / "x.json"
        )


def _other_dinov2(tmp_path, full, folders):
    """Make the reference features of another DINOv2."""
    other = shutil.copytree(folders["dinov2"], tmp_path / "other")
    weights = load_file(other / "model.safetensors")
    save_file({name: tensor + 0.01 for name, tensor in weights.items()}, other / "model.safetensors", {"format": "pt"})
    evaluate = full.evaluate.model_copy(
        update={"dinov2": full.evaluate.dinov2.model_copy(update={"source": str(other)})}
    )
    build(evaluate, tmp_path / "other.safetensors")
    return tmp_path / "other.safetensors"


def test_optional_networks_from_the_hub_are_fetched_at_a_commit(folders, evaluate_settings, tmp_path, monkeypatch):
    lacking = shutil.copytree(folders["imagereward"], tmp_path / "imagereward")  # as on the hub
    (tmp_path / "bert").mkdir()
    shutil.move(lacking / "vocab.txt", tmp_path / "bert" / "vocab.txt")
    repos = {f"tiny/{key}": folder for key, folder in (folders | {"imagereward": lacking}).items()}
    with Server(repos=repos | {BERT[0]: tmp_path / "bert"}) as server:
        server._commits[BERT[0]] = BERT[1]
        server.use_as_hub(monkeypatch, tmp_path / "cache")
        networks = {key: {"source": f"tiny/{key}", "revision": server.commit(f"tiny/{key}")} for key in folders}
        prepare_networks(evaluate_settings(**networks).evaluate, tmp_path / "extractors.json")
        before = len(server.requests)
        there = optional.optional_networks(FeatureSettings(batch=2, **networks))
        assert len(server.requests) == before
    record = read_json(tmp_path / "extractors.json")
    for extra, here in zip(there, optional.optional_networks(settings(folders, *folders)), strict=True):
        assert extra.record == here.record or extra.column == "imagereward"  # whose vocabulary is of another place
        from_hub, from_folder = (one.rows([one.prepare(pictures(1)[0])], TEXTS[:1]) for one in (extra, here))
        assert torch.equal(from_hub, from_folder)
        assert record[extra.column]["sha256"] == sha256_file(record[extra.column]["path"])


@pytest.mark.parametrize("key", ["dinov2", "pickscore"])
def test_network_weights_of_another_config_changes_the_identity(folders, tmp_path, key):
    # Activations, say, do not show in the weights.
    other = shutil.copytree(folders[key], tmp_path / key)
    config = read_json(other / "config.json")
    (other / "config.json").write_text(json.dumps(config | {"layer_norm_eps": 0.1}))
    ours, theirs = (optional.optional_networks(settings(where, key))[0].record for where in (folders, {key: other}))
    assert {name for name in ours if ours[name] != theirs[name]} == {"weights"}


@pytest.mark.parametrize("key", METRICS)
def test_optional_networks_of_missing_or_damaged_files_raises(folders, tmp_path, key):
    with pytest.raises(UserError, match=rf"evaluate\.{key}\.source=.*nowhere: no file .*set evaluate\.{key}\.revision"):
        optional.optional_networks(settings({key: tmp_path / "nowhere"}, key))
    with pytest.raises(UserError, match=rf"evaluate\.{key}\.sha256=0+: "):
        optional.optional_networks(settings(folders, key, sha256="0" * 64))
    damaged = shutil.copytree(folders[key], tmp_path / "damaged")
    for path in damaged.iterdir():
        if path.suffix in (".safetensors", ".pt"):
            path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(UserError, match=rf"evaluate\.{key}: .*damaged"):
        optional.optional_networks(settings({key: damaged}, key))


def test_optional_networks_without_a_layer_raises(folders, tmp_path):
    # Transformers itself would go on with random ones.
    folder = shutil.copytree(folders["dinov2"], tmp_path / "lacking")
    weights = load_file(folder / "model.safetensors")
    del weights["layernorm.weight"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=r"evaluate\.dinov2: .*lacks weights of Dinov2Model: layernorm\.weight"):
        optional.optional_networks(settings({"dinov2": folder}, "dinov2"))

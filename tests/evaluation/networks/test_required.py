"""Test that networks of any source are the right file, called as the reference calls it, or an error."""

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from serving import Corrupt, Server, Status
from tiny_parts import clip_repository, inception

from sid_core.config import BuildReferenceSettings, FeatureSettings
from sid_core.data.shapes import ASSETS
from sid_core.errors import UserError
from sid_core.evaluation.networks.required import Clip, Features
from sid_core.evaluation.networks.weights import Weights, network_weights, prepare_networks
from sid_core.storage.files import read_json, sha256_file

REPO = "tiny/clip"


def features(source: object, sha256: str | None = None, **changes) -> Features:
    network = {"source": str(source), "sha256": sha256}
    return Features(FeatureSettings(feature_network=network, batch=2, **changes))


def clip(source: object, revision: str | None = None, sha256: str | None = None, **changes) -> Clip:
    network = {"source": str(source), "revision": revision, "sha256": sha256}
    return Clip(FeatureSettings(clip=network, batch=2, **changes))


def weights(key: str, source: object, revision: str | None = None) -> Weights:
    network = {"source": str(source), "revision": revision}
    return network_weights(FeatureSettings(batch=2, **{key: network}), key)


@pytest.fixture(scope="session")
def parts(tmp_path_factory):
    """Make a folder with the TorchScript stand-in, and an open_clip repository."""
    folder = tmp_path_factory.mktemp("parts")
    inception(folder / "inception-2015-12-05.pt")
    clip_repository(folder / "clip")
    return folder


@pytest.fixture
def server(parts, tmp_path, monkeypatch):
    with Server(files=parts, repos={REPO: parts / "clip"}) as server:
        server.use_as_hub(monkeypatch, tmp_path / "cache")
        monkeypatch.setattr("sid_core.storage.downloads.BACKOFF_S", 0.001)
        yield server


def photos(count: int, side: int) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return list((rng.random((count, side, side, 3)) * 255).astype(np.float32))


# --- Inception -----------------------------------------------------------------------------------------------------------


def test_inception_equals_clean_fid(parts, monkeypatch):
    from cleanfid.inception_torchscript import InceptionV3W

    theirs = InceptionV3W(str(parts), download=False)
    images = photos(3, 299)
    batch = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)
    with torch.no_grad():
        expected = theirs.layers((batch - 128) / 128)
        # clean-fid's own call takes 2048 features for granted
        theirs.layers = torch.nn.Sequential(theirs.layers, torch.nn.ConstantPad1d((0, 2048 - expected.shape[1]), 0.0))
        padded = theirs(batch)
    found = features(parts / "inception-2015-12-05.pt").rows(images)
    assert torch.equal(found, padded[:, : found.shape[1]])
    assert found.shape == (3, 12)
    assert found.std(dim=0).max() > 0


def test_inception_of_another_size_raises(parts):
    with pytest.raises(UserError, match=r"evaluate\.feature_size: the feature network takes 299 x 299, got 256 x 256"):
        features(parts / "inception-2015-12-05.pt").rows(photos(1, 256))


def test_network_weights_of_a_url_downloads_once_and_verifies(server, parts):
    path = "/files/inception-2015-12-05.pt"
    sha256 = sha256_file(parts / "inception-2015-12-05.pt")
    server.faults[path] = [Status(503)]
    assert features(server.url + path, sha256).identity == sha256
    assert features(server.url + path, sha256).identity == sha256
    assert len(server.requests) == 2


def test_network_weights_of_another_sha256_raises(server, parts, monkeypatch):
    monkeypatch.setattr(torch.jit, "load", lambda *_, **__: pytest.fail("loaded before it was verified"))
    url = f"{server.url}/files/inception-2015-12-05.pt"
    for setting in (url, str(parts / "inception-2015-12-05.pt")):
        with pytest.raises(UserError, match="0" * 64):
            features(setting, "0" * 64)
    server.faults["/files/inception-2015-12-05.pt"] = [Corrupt(500)]
    with pytest.raises(UserError, match="expected sha256"):
        features(url, sha256_file(parts / "inception-2015-12-05.pt"))


@pytest.mark.parametrize("content", ["damaged", "another"])
def test_features_of_another_file_raises(tmp_path, content):
    path = tmp_path / "x.pt"
    if content == "damaged":
        path.write_bytes(b"PK\x03\x04 no archive")
    else:
        torch.jit.script(torch.nn.Linear(2, 2)).save(str(path))
    with pytest.raises(UserError, match=r"x\.pt: not a feature network .*expected a TorchScript file"):
        features(path)


def test_network_weights_of_a_missing_path_raises(tmp_path):
    with pytest.raises(UserError, match=r"evaluate\.feature_network\.source=.*nowhere\.pt: no file"):
        features(tmp_path / "nowhere.pt")


# --- CLIP ----------------------------------------------------------------------------------------------------------------


def pictures(count: int, side: int = 40) -> list[np.ndarray]:
    return [image.astype(np.uint8) for image in photos(count, side)]


def test_clip_from_the_hub_equals_the_one_on_disk(server, parts):
    there = clip(REPO, server.commit(REPO))
    here = clip(parts / "clip")
    assert there.identity == here.identity
    assert torch.equal(there.images(pictures(2)), here.images(pictures(2)))
    assert torch.equal(there.texts(["A photo depicts A dog."]), here.texts(["A photo depicts A dog."]))
    fetched = {path.rsplit("/", 1)[1] for path in server.fetched(f"/{REPO}/")}
    assert fetched == {"open_clip_config.json", "open_clip_model.safetensors"}


def test_network_weights_of_a_cached_commit_sends_no_request(server):
    weights("clip", REPO, server.commit(REPO))
    before = len(server.requests)
    weights("clip", REPO, server.commit(REPO))
    assert len(server.requests) == before


def test_clip_is_float32_and_in_evaluation_mode(parts):
    model = clip(parts / "clip")._model
    assert not model.training
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_network_weights_of_older_repositories_finds_them(parts, tmp_path, monkeypatch):
    clip_repository(tmp_path / "old", binary=True)
    with Server(repos={REPO: tmp_path / "old"}) as server:
        server.use_as_hub(monkeypatch, tmp_path / "cache")
        old = clip(REPO, server.commit(REPO))
    assert torch.equal(old.images(pictures(2)), clip(parts / "clip").images(pictures(2)))


class Evil:
    def __reduce__(self):
        return print, ("executed",)


def test_clip_of_pickled_code_raises(tmp_path, capsys):
    folder = clip_repository(tmp_path / "evil", binary=True)
    torch.save({"state_dict": Evil()}, folder / "open_clip_pytorch_model.bin")
    with pytest.raises(UserError, match="cannot be loaded by open_clip"):
        clip(folder)
    assert "executed" not in capsys.readouterr().out


def test_clip_with_weights_of_another_model_raises(parts, tmp_path):
    folder = shutil.copytree(parts / "clip", tmp_path / "clip")
    config = read_json(folder / "open_clip_config.json")
    config["model_cfg"]["embed_dim"] = 16
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="cannot be loaded by open_clip"):
        clip(folder)


@pytest.mark.parametrize(
    ("revision", "sha256", "message"),
    [
        ("0" * 40, None, r"evaluate\.clip\.revision=0+: no such revision"),
        ("commit", "0" * 64, r"evaluate\.clip\.sha256=0+: .*open_clip_model\.safetensors has"),
        (
            None,
            None,
            r"evaluate\.clip\.source=tiny/clip: no file .*for a hub's repository set evaluate\.clip\.revision",
        ),
    ],
)
def test_network_weights_of_wrong_settings_names_them(server, revision, sha256, message):
    with pytest.raises(UserError, match=message):
        clip(REPO, server.commit(REPO) if revision == "commit" else revision, sha256)


def test_network_weights_of_a_repository_without_open_clip_raises(parts, tmp_path, monkeypatch):
    folder = shutil.copytree(parts / "clip", tmp_path / "other", ignore=shutil.ignore_patterns("open_clip_model*"))
    with Server(repos={REPO: folder}) as server:
        server.use_as_hub(monkeypatch, tmp_path / "cache")
        with pytest.raises(UserError, match=r"evaluate\.clip\.source=tiny/clip: expected open_clip_config\.json and"):
            weights("clip", REPO, server.commit(REPO))


def test_clip_with_its_own_tokenizer_uses_it(parts, tmp_path, monkeypatch):
    folder = shutil.copytree(parts / "clip", tmp_path / "other")
    config = read_json(folder / "open_clip_config.json")
    config["model_cfg"]["text_cfg"]["hf_tokenizer_name"] = "somewhere/else"
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    with Server(repos={REPO: folder}) as server:
        server.use_as_hub(monkeypatch, tmp_path / "cache")
        weights("clip", REPO, server.commit(REPO))
        assert any(path.endswith("/tokenizer.json") for path in server.fetched())


# --- what identifies a network -----------------------------------------------------------------------------------------------


def edited(folder, part: str, **changes):
    """Return the folder after editing open_clip_config.json."""
    config = read_json(folder / "open_clip_config.json")
    within = config["model_cfg"][part] if part in config["model_cfg"] else config[part]
    within.update(changes)
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    return weights("clip", folder)


def test_identity_depends_on_weights_and_config(parts, tmp_path):
    folder = shutil.copytree(parts / "clip", tmp_path / "clip")
    first = weights("clip", folder)
    assert first.sha256 == sha256_file(folder / "open_clip_model.safetensors")
    other = edited(folder, "preprocess_cfg", mean=[0.5, 0.5, 0.5])
    assert other.sha256 == first.sha256
    assert other.identity != first.identity


def test_identity_depends_on_a_tokenizer_in_use(parts, tmp_path):
    folder = shutil.copytree(parts / "clip", tmp_path / "clip")
    found = []
    for name in ("", "its/own"):
        found.append(edited(folder, "text_cfg", hf_tokenizer_name=name).identity)
        (folder / "tokenizer.json").write_text(f'{{"as": "{name}"}}')
        found.append(weights("clip", folder).identity)
    assert found[0] == found[1]
    assert len(set(found)) == 3


def test_network_weights_hashes_the_file_that_open_clip_loads(parts, tmp_path):
    folder = clip_repository(tmp_path / "clip", binary=True)
    other = torch.load(folder / "open_clip_pytorch_model.bin", weights_only=True)
    other = {name: tensor + 0.1 if tensor.is_floating_point() else tensor for name, tensor in other.items()}
    save_file(other, folder / "open_clip_pytorch_model.safetensors")
    assert weights("clip", folder).path.suffix == ".safetensors"
    loaded = clip(folder)._model.state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in other.items())


def test_identity_of_a_feature_network_depends_on_its_config(tmp_path):
    folder = shutil.copytree(ASSETS / "features", tmp_path / "features")
    first = weights("feature_network", folder)
    assert weights("feature_network", folder / "model.safetensors") == first
    (folder / "config.json").write_text((folder / "config.json").read_text() + " ")
    assert weights("feature_network", folder).identity != first.identity


# --- settings and the stage ------------------------------------------------------------------------------------------------------


def test_networks_use_the_settings(parts):
    values = {"feature_network": str(parts / "inception-2015-12-05.pt"), "clip": str(parts / "clip"), "batch": 2}
    image = pictures(1)[0]
    assert torch.equal(Clip(FeatureSettings(**values)).prepare(image), clip(parts / "clip").prepare(image))
    for key, load in (("feature_network", Features), ("clip", Clip)):
        with pytest.raises(UserError, match=rf"evaluate\.{key}\.sha256={'0' * 64}"):
            load(FeatureSettings(**values | {key: {"source": values[key], "sha256": "0" * 64}}))


def test_prepare_networks_fetches_and_records_hashes(server, parts, tmp_path):
    url = f"{server.url}/files/inception-2015-12-05.pt"
    settings = BuildReferenceSettings(
        **{
            "feature_network": url,
            "clip": {"source": REPO, "revision": server.commit(REPO)},
            "batch": 2,
            "reference_samples": 1,
        }
    )
    prepare_networks(settings, tmp_path / "extractors.json")
    record = read_json(tmp_path / "extractors.json")
    assert record["feature_network"]["sha256"] == sha256_file(parts / "inception-2015-12-05.pt")
    assert record["clip"]["sha256"] == sha256_file(parts / "clip" / "open_clip_model.safetensors")
    assert record["reference"] == {"setting": "embedded"}
    before = len(server.requests)
    Features(settings), Clip(settings)
    assert len(server.requests) == before


def test_network_weights_finds_embedded_ones():
    assert weights("feature_network", "embedded").path.is_file()
    assert weights("clip", "embedded").path.is_file()

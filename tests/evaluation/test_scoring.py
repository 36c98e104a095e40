"""Test the way from sample shards to a score, with tiny networks; metrics have tests of their own."""

import json
import math
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import scipy.linalg
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from small import CAPTIONS, SAMPLES, baseline_settings, build, generate_settings

from sid_core import cli
from sid_core.config import BuildReferenceSettings, FeatureSettings, dump
from sid_core.data.images import encode_png, pixel_sha256
from sid_core.data.shards import captions_sha256, write_shard
from sid_core.errors import UserError
from sid_core.evaluation.features import extract_features
from sid_core.evaluation.metrics.samples import clip_score
from sid_core.evaluation.networks.feature_network import FeatureNetwork
from sid_core.evaluation.networks.required import Clip
from sid_core.evaluation.scoring import score
from sid_core.pipeline.paths import Row
from sid_core.sampling import generation
from sid_core.sampling.generation import generate
from sid_core.storage.files import read_json, sidecar, write_sidecar


def clip(source: object) -> Clip:
    return Clip(FeatureSettings(clip=str(source), batch=2))


@pytest.fixture(scope="module")
def made(tmp_path_factory, tiny_generator, tiny_teacher, captions, evaluate_settings):
    """Make two shards of samples, their features and the reference."""
    folder = tmp_path_factory.mktemp("made")
    reference = folder / "reference" / "features.safetensors"
    build(evaluate_settings().evaluate, reference)
    samples, features = [], []
    for name, span in (("00000", (0, 13)), ("00001", (13, SAMPLES))):
        samples.append(folder / "samples" / f"{name}.tar")
        features.append(folder / "features" / f"{name}.safetensors")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(generation, "EPS_ERROR_SAMPLES", 5)
            generate(generate_settings(), tiny_generator, tiny_teacher, captions, *span, samples[-1])
        extract_features(evaluate_settings().evaluate, samples[-1], captions, features[-1])
    return SimpleNamespace(reference=reference, samples=samples, features=features, captions=captions)


@pytest.fixture
def scored(made, evaluate_settings, tmp_path):
    out = tmp_path / "score.json"
    score(evaluate_settings(), made.features, made.reference, made.captions, out)
    return read_json(out)


def test_score_has_every_value(scored):
    numbers = ["fid", "fid_se", "fid_inf", "clip", "clip_se", "kid", "precision", "recall", "images_per_s"]
    assert all(math.isfinite(scored[name]) for name in numbers)
    assert scored["samples"] == SAMPLES
    assert (scored["nfe"], scored["sampler"]) == (1, {"t_init": 625, "num_steps": 1})
    assert len(scored["generator_sha256"]) == len(scored["protocol_hash"]) == 64
    assert scored["protocol"]["weights"] == scored["weights"]
    assert scored["versions"]["torch"]


def test_score_of_real_images_has_no_throughput(tiny_teacher, evaluate_settings, scene_captions, made, tmp_path):
    generate(baseline_settings("real"), None, tiny_teacher, scene_captions, 0, SAMPLES, tmp_path / "samples.tar")
    features = tmp_path / "features.safetensors"
    extract_features(evaluate_settings().evaluate, tmp_path / "samples.tar", scene_captions, features)
    score(evaluate_settings(), [features], made.reference, scene_captions, tmp_path / "score.json")
    assert read_json(tmp_path / "score.json")["images_per_s"] is None


def test_score_eps_error_equals_the_mean_over_the_first_samples(made, scored):
    records = [read_json(sidecar(path))["record"]["samples"] for path in made.samples]
    errors = [sample["eps_error"] for record in records for sample in record]
    assert scored["teacher_eps_error"] == pytest.approx(np.mean(errors[:5]))


def test_score_has_intervals_and_errors(made, scored):
    names = [
        "fid",
        "fid_inf",
        "clip",
        "kid",
        "precision",
        "recall",
        "density",
        "coverage",
        "cmmd",
        "vendi",
        "diversity",
    ]
    assert list(scored["intervals"]) == list(scored["standard_errors"]) == names
    for name in names:
        low, high = scored["intervals"][name]
        assert low <= scored[name] <= high or name == "fid_inf"
        assert scored["standard_errors"][name] >= 0
    assert (scored["fid_se"], scored["clip_se"]) == tuple(scored["standard_errors"][name] for name in ("fid", "clip"))


def test_score_diversity_equals_the_mean_over_its_captions(made, scored):
    features = torch.cat([load_file(path)["features"] for path in made.features]).double()
    groups = [features[number::7] for number in range(7)]  # of CAPTIONS
    assert scored["diversity"] == pytest.approx(np.mean([float(torch.pdist(group).mean()) for group in groups]))


def frechet(ours: np.ndarray, theirs: np.ndarray) -> float:
    (mean, covariance), (mean_t, covariance_t) = ((x.mean(0), np.cov(x, rowvar=False)) for x in (ours, theirs))
    root = np.trace(scipy.linalg.sqrtm(covariance @ covariance_t)).real
    return ((mean - mean_t) ** 2).sum() + np.trace(covariance) + np.trace(covariance_t) - 2 * root


@pytest.fixture(scope="module")
def teacher_scores(made, tiny_teacher, evaluate_settings):
    """Score two rows of the teacher, in the shards of the samples; the second has the lower FID."""
    paths = []
    for name, scale in (("cfg-1", 1.0), ("cfg-4", 4.0)):
        row = Row(made.reference.parents[1] / name)
        kind = baseline_settings("teacher", solver="ddim", steps=2, guidance_scale=scale)
        for path, span in zip(made.features, ((0, 13), (13, SAMPLES)), strict=True):
            generate(kind, None, tiny_teacher, made.captions, *span, row.samples(path.stem))
            extract_features(
                evaluate_settings().evaluate, row.samples(path.stem), made.captions, row.features(path.stem)
            )
        features = [row.features(path.stem) for path in made.features]
        score(evaluate_settings(), features, made.reference, made.captions, row.score)
        paths.append(row.score)
    low, high = sorted(read_json(path)["fid"] for path in paths)
    assert low < high
    return paths


def test_score_fid_teacher_equals_scipys_distance_to_the_lowest_row(made, teacher_scores, evaluate_settings, tmp_path):
    out = tmp_path / "score.json"
    score(evaluate_settings(), made.features, made.reference, made.captions, out, teacher_scores)
    found, best = read_json(out), min(teacher_scores, key=lambda path: read_json(path)["fid"])
    ours, theirs = (
        np.concatenate([load_file(path)["features"].double().numpy() for path in paths])
        for paths in (made.features, [Row(best.parent).features(path.stem) for path in made.features])
    )
    assert found["fid_teacher"] == pytest.approx(frechet(ours, theirs), rel=1e-6)
    assert found["recipes"]["fid_teacher"]["row"] == best.parent.name
    score(evaluate_settings(), made.features, made.reference, made.captions, tmp_path / "off.json")
    off = read_json(tmp_path / "off.json")
    changed = {key for key in found if found[key] != off[key]}
    assert changed == {"fid_teacher", "recipes", "not_computed", "standard_errors", "intervals"}


def test_score_of_another_teacher_or_protocol_has_no_fid_teacher(made, teacher_scores, evaluate_settings, tmp_path):
    settings, rest = evaluate_settings(fid_teacher=True), (made.reference, made.captions, tmp_path / "score.json")
    foreign = []
    for path in made.features:
        foreign.append(shutil.copy(path, tmp_path / path.name))
        record = read_json(sidecar(path))
        record["record"]["teacher_sha256"] = "0" * 64
        sidecar(foreign[-1]).write_text(json.dumps(record))
    score(settings, foreign, *rest, teacher_scores)
    reason = "no row of this one's teacher to compare with"
    assert read_json(tmp_path / "score.json")["not_computed"]["fid_teacher"] == reason
    score(settings, made.features, *rest)  # a baseline: no row is given
    assert read_json(tmp_path / "score.json")["not_computed"]["fid_teacher"] == reason
    with pytest.raises(
        UserError, match=r"cfg-\d/score\.json: of another protocol \(precision_recall\.neighbours: 3, 4\)"
    ):
        score(evaluate_settings(neighbours=4), made.features, *rest, teacher_scores)


def test_score_patch_fid_equals_scipys_distance_of_central_crops(made, networks, evaluate_settings, tmp_path):
    rng, folder = np.random.default_rng(0), tmp_path / "images"
    folder.mkdir()
    theirs = [rng.integers(0, 256, (24 + i, 40 - i % 3, 3), dtype=np.uint8) for i in range(30)]
    theirs[4] = theirs[4][:, :23]  # smaller than the crop of 24
    for i, image in enumerate(theirs):
        Image.fromarray(image).save(folder / f"{i:02d}.png")
    ours = list(rng.integers(0, 200, (SAMPLES, 41, 30, 3), dtype=np.uint8))
    shard, record = tmp_path / "00000.tar", read_json(sidecar(made.samples[0]))["record"]
    entries = [{"index": i, "seed": i, "sha256": pixel_sha256(x), "eps_error": None} for i, x in enumerate(ours)]
    record |= {"stop": SAMPLES, "samples": entries, "captions_sha256": captions_sha256(CAPTIONS)}
    write_shard(shard, ((i, encode_png(image, 1)) for i, image in enumerate(ours)), record)
    settings = evaluate_settings(patches=True, reference=str(folder))
    build(settings.evaluate, tmp_path / "reference.safetensors")
    extract_features(settings.evaluate, shard, made.captions, tmp_path / "f.safetensors")
    out = tmp_path / "score.json"
    score(settings, [tmp_path / "f.safetensors"], tmp_path / "reference.safetensors", made.captions, out)

    network = FeatureNetwork.from_directory(networks["feature_network"])

    def rows(images: list[np.ndarray]) -> np.ndarray:
        corners = [((len(image) - 24) // 2, (image.shape[1] - 24) // 2) for image in images]
        crops = [image[y : y + 24, x : x + 24] for (y, x), image in zip(corners, images, strict=True)]
        return network(torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2)).double().numpy()

    fits = theirs[:4] + theirs[5:]
    assert read_json(out)["patch_fid"] == pytest.approx(frechet(rows(ours), rows(fits)), rel=1e-4)
    assert read_json(out)["recipes"]["patch_fid"]["reference_images"] == 29


def test_score_of_images_smaller_than_the_crop_has_no_patch_fid(made, scored, evaluate_settings, tmp_path):
    settings, out = evaluate_settings(patches=True), tmp_path / "score.json"
    build(settings.evaluate, tmp_path / "reference.safetensors")
    features = [tmp_path / path.name for path in made.features]
    for samples, path in zip(made.samples, features, strict=True):
        extract_features(settings.evaluate, samples, made.captions, path)
    score(settings, features, tmp_path / "reference.safetensors", made.captions, out)
    found = read_json(out)
    assert found["not_computed"]["patch_fid"].startswith(
        "the stored images, or almost all reference images, are smaller"
    )
    assert (found["fid"], found["protocol_hash"]) == (scored["fid"], scored["protocol_hash"])


def test_score_without_a_network_names_its_metrics(scored):
    assert scored["not_computed"] == {
        "fid_teacher": "evaluate.fid_teacher is false",
        "patch_fid": "evaluate.patches is false",
        "fd_dinov2": "evaluate.dinov2 is null",
        "hps": "evaluate.hps is null",
        "pickscore": "evaluate.pickscore is null",
        "imagereward": "evaluate.imagereward is null",
    }
    assert {scored[name] for name in scored["not_computed"]} == {None}


def test_score_of_features_without_a_network_raises(made, evaluate_settings, tmp_path):
    settings = evaluate_settings(hps={"source": "anywhere"})
    with pytest.raises(UserError, match=r"00000\.safetensors: made for no further metric, expected hps by evaluate"):
        score(settings, made.features, made.reference, made.captions, tmp_path / "score.json")


def test_score_with_shards_in_any_order_is_equal(made, scored, evaluate_settings, tmp_path):
    score(evaluate_settings(), made.features[::-1], made.reference, made.captions, tmp_path / "again.json")
    assert read_json(tmp_path / "again.json") == scored


def test_score_of_one_shard_or_two_is_equal(
    made, scored, tiny_generator, tiny_teacher, captions, evaluate_settings, tmp_path
):
    generate(generate_settings(), tiny_generator, tiny_teacher, captions, 0, SAMPLES, tmp_path / "00000.tar")
    features = tmp_path / "00000.safetensors"
    extract_features(evaluate_settings().evaluate, tmp_path / "00000.tar", captions, features)
    score(evaluate_settings(), [features], made.reference, captions, tmp_path / "again.json")
    again = read_json(tmp_path / "again.json")
    assert again["protocol_hash"] == scored["protocol_hash"]
    assert again["fid"] == pytest.approx(scored["fid"], rel=1e-4)
    assert again["clip"] == pytest.approx(scored["clip"], abs=1e-6)


@pytest.mark.parametrize("workers", [2, 5])
def test_extract_features_with_more_workers_gives_equal_bytes(workers, made, evaluate_settings, tmp_path):
    settings, features, reference = evaluate_settings().evaluate, tmp_path / "f.safetensors", tmp_path / "r.safetensors"
    extract_features(settings, made.samples[0], made.captions, features, workers)
    build(settings, reference, workers)
    assert features.read_bytes() == made.features[0].read_bytes()
    assert reference.read_bytes() == made.reference.read_bytes()
    assert read_json(sidecar(reference)) == read_json(sidecar(made.reference))


def test_score_of_images_stored_at_the_protocols_size_is_equal(
    made, scored, tiny_generator, tiny_teacher, captions, evaluate_settings, tmp_path
):
    # Shrunk to 12 when stored, or when seen: one protocol, one result.
    settings = evaluate_settings(image_size=12)
    reference, scores = tmp_path / "reference.safetensors", []
    build(settings.evaluate, reference)
    for size in (None, 12):
        samples, features = tmp_path / f"samples-{size}.tar", tmp_path / f"features-{size}.safetensors"
        sampled = generate_settings(image_size=size)
        generate(sampled, tiny_generator, tiny_teacher, captions, 0, SAMPLES, samples)
        extract_features(settings.evaluate, samples, captions, features)
        score(settings, [features], reference, captions, tmp_path / f"score-{size}.json")
        scores.append(read_json(tmp_path / f"score-{size}.json"))
    assert scores[0] == scores[1] | {"images_per_s": scores[0]["images_per_s"]}
    with pytest.raises(UserError, match=r"samples-12\.tar: stored at 12 x 12, expected evaluate\.image_size=16"):
        extract_features(
            evaluate_settings().evaluate, tmp_path / "samples-12.tar", captions, tmp_path / "x.safetensors"
        )


def test_score_records_precision_and_device(
    made, scored, tiny_generator, tiny_teacher, captions, evaluate_settings, tmp_path
):
    assert scored["generated_in"] == "float32"
    assert scored["generated_on"] in ("cpu", "cuda")
    features = []
    for start, stop in ((0, 13), (13, SAMPLES)):
        samples = tmp_path / f"samples-{start}.tar"
        features.append(tmp_path / f"features-{start}.safetensors")
        sampled = generate_settings(precision="bfloat16")
        generate(sampled, tiny_generator, tiny_teacher, captions, start, stop, samples)
        extract_features(evaluate_settings().evaluate, samples, captions, features[-1])
    score(evaluate_settings(), features, made.reference, captions, tmp_path / "score.json")
    other = read_json(tmp_path / "score.json")
    assert other["generated_in"] == "bfloat16"
    assert other["protocol_hash"] == scored["protocol_hash"], "precision is the generator's, not the protocol's"
    assert other["fid"] != scored["fid"]
    with pytest.raises(
        UserError, match=r"other settings than expected \(precision: float32, bfloat16; settings_sha256: "
    ):
        score(evaluate_settings(), [made.features[0], features[1]], made.reference, captions, tmp_path / "x.json")


class Pictures:
    """Reference images that are 30 different ones, but for the last `repeated`, which are the first again."""

    def __init__(self, count: int, repeated: int):
        self.images = np.random.default_rng(0).integers(0, 256, (count, 20, 30, 3), dtype=np.uint8)
        self.images[count - repeated :] = self.images[:repeated]

    def __len__(self) -> int:
        return len(self.images)

    def read(self, index: int) -> np.ndarray:
        return self.images[index]

    def record(self) -> dict:
        return {"source": "files", "count": len(self), "files_sha256": "a" * 64}


def test_build_reference_of_files_caches_features(evaluate_settings, tmp_path, monkeypatch):
    from sid_core.evaluation import features

    monkeypatch.setenv("SID_CORE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(features, "reference_images", lambda settings: Pictures(200, repeated=2))
    first, again = tmp_path / "first.safetensors", tmp_path / "again.safetensors"
    settings = evaluate_settings(reference_samples=200).evaluate
    build(settings, first)
    record = read_json(sidecar(first))["record"]
    assert (record["source"], record["count"], record["repeated"]) == ("files", 200, 2)
    assert load_file(first)["features"].shape == (200, 6)

    [kept] = (tmp_path / "cache").rglob("*.safetensors")
    monkeypatch.setattr(Pictures, "read", lambda *_: pytest.fail("seen again"))
    build(settings, again)
    assert again.read_bytes() == first.read_bytes()
    assert read_json(sidecar(again)) == read_json(sidecar(first))
    kept.write_bytes(kept.read_bytes()[:-1])
    monkeypatch.undo()
    monkeypatch.setenv("SID_CORE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(features, "reference_images", lambda settings: Pictures(200, repeated=2))
    build(settings, again)
    assert again.read_bytes() == first.read_bytes(), "a damaged copy is made again"


def test_build_reference_with_other_code_encodes_again(evaluate_settings, tmp_path, monkeypatch):
    from sid_core.evaluation import features

    monkeypatch.setenv("SID_CORE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(features, "reference_images", lambda settings: Pictures(30, repeated=0))
    values = evaluate_settings().evaluate.model_dump(include=set(BuildReferenceSettings.model_fields))
    (tmp_path / "settings.yaml").write_text(dump(BuildReferenceSettings(**values)))
    for code in ("first", "first", "a fix"):
        monkeypatch.setattr("sid_core.cli.stage_digest", {"evaluation.features": code}.__getitem__)
        arguments = ["--settings", str(tmp_path / "settings.yaml"), "--out", str(tmp_path / "out.safetensors")]
        assert cli.main(["reference", *arguments]) == 0
    assert len(list((tmp_path / "cache").rglob("*.safetensors"))) == 2


def test_build_reference_of_repeated_images_raises(evaluate_settings, tmp_path, monkeypatch):
    from sid_core.evaluation import features

    monkeypatch.setenv("SID_CORE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(features, "reference_images", lambda settings: Pictures(40, repeated=20))
    with pytest.raises(UserError, match="20 of 40 are repeated"):
        build(evaluate_settings().evaluate, tmp_path / "x.safetensors")


def test_extract_features_pairs_images_and_captions(made, networks, evaluate_settings):
    # The CLIP score of the stored embeddings is that of each image with its own caption.
    network = clip(networks["clip"])
    stored = load_file(made.features[1])
    assert stored["index"].tolist() == list(range(13, SAMPLES))
    assert torch.allclose(stored["clip_text"], network.texts(CAPTIONS[13:]), atol=1e-6)
    assert torch.allclose(stored["clip_image"].norm(dim=1), torch.ones(7), atol=1e-5)
    assert clip_score(stored["clip_image"], network.texts(CAPTIONS[13:]), 2).value == pytest.approx(
        float((stored["clip_image"] * stored["clip_text"]).sum(1).mean()), abs=1e-6
    )


def test_clip_is_deterministic_and_resizes_as_pil(networks):
    # In training mode, or with random weights, two loads would differ.
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    first, second = (clip(networks["clip"]).images([image]) for _ in range(2))
    assert torch.equal(first, second)
    shrunk = np.asarray(Image.fromarray(image).resize((16, 16), Image.Resampling.BICUBIC))
    assert torch.equal(clip(networks["clip"]).images([shrunk]), first)


def test_open_clip_preprocessing_equals_pil_bicubic():
    # 256 to 224, the published protocol's size.
    from open_clip.transform import image_transform

    image = np.random.default_rng(0).integers(0, 256, (256, 256, 3), dtype=np.uint8)
    seen = image_transform(224, is_train=False, mean=(0, 0, 0), std=(1, 1, 1))(Image.fromarray(image))
    expected = np.asarray(Image.fromarray(image).resize((224, 224), Image.Resampling.BICUBIC))
    assert np.array_equal((seen * 255).round().permute(1, 2, 0).byte().numpy(), expected)


def test_caption_prefix_precedes_the_caption(made, networks, evaluate_settings, tmp_path):
    out = tmp_path / "00000.safetensors"
    extract_features(evaluate_settings(caption_prefix="so ").evaluate, made.samples[0], made.captions, out)
    expected = clip(networks["clip"]).texts([f"so {caption}" for caption in CAPTIONS[:13]])
    assert torch.allclose(load_file(out)["clip_text"], expected, atol=1e-6)


def test_score_of_real_images_beats_a_random_generator(
    made, scored, tiny_teacher, scene_captions, evaluate_settings, tmp_path
):
    generate(baseline_settings("real"), None, tiny_teacher, scene_captions, 0, SAMPLES, tmp_path / "real.tar")
    features = tmp_path / "real.safetensors"
    extract_features(evaluate_settings().evaluate, tmp_path / "real.tar", scene_captions, features)
    score(evaluate_settings(), [features], made.reference, scene_captions, tmp_path / "score.json")
    real = read_json(tmp_path / "score.json")
    assert real["fid"] < scored["fid"] / 2
    assert real["generator_sha256"] is None
    assert real["protocol_hash"] != scored["protocol_hash"], "other captions are another protocol"


def test_score_with_other_formulas_uses_the_same_features(made, scored, evaluate_settings, tmp_path):
    settings = evaluate_settings(neighbours=2)
    score(settings, made.features, made.reference, made.captions, tmp_path / "again.json")
    again = read_json(tmp_path / "again.json")
    assert again["fid"] == scored["fid"]
    assert again["protocol_hash"] != scored["protocol_hash"]


# --- refusals --------------------------------------------------------------------------------------------------------


def test_score_of_a_partial_set_raises(made, evaluate_settings, tmp_path):
    with pytest.raises(UserError, match=r"samples missing: 13–19 \(7 of 20\)"):
        score(evaluate_settings(), made.features[:1], made.reference, made.captions, tmp_path / "score.json")
    with pytest.raises(UserError, match="no feature shards"):
        score(evaluate_settings(), [], made.reference, made.captions, tmp_path / "score.json")
    assert not (tmp_path / "score.json").exists()


def test_score_of_missing_features_names_them(made, evaluate_settings, tmp_path):
    with pytest.raises(UserError, match=r"00007\.safetensors"):
        score(evaluate_settings(), [tmp_path / "00007.safetensors"], made.reference, made.captions, tmp_path / "s.json")


def test_score_of_nan_features_names_samples(made, evaluate_settings, tmp_path):
    tensors, record = load_file(made.features[0]), read_json(sidecar(made.features[0]))["record"]
    tensors["features"][4, 2] = torch.nan
    spoilt = tmp_path / "00000.safetensors"
    save_file(tensors, spoilt)
    write_sidecar(spoilt, record)
    with pytest.raises(UserError, match=r"00000\.safetensors: features: features of samples 4 are not finite"):
        score(evaluate_settings(), [spoilt, made.features[1]], made.reference, made.captions, tmp_path / "score.json")


def test_score_of_truncated_features_names_the_file(made, evaluate_settings, tmp_path):
    path = tmp_path / "00000.safetensors"
    path.write_bytes(made.features[0].read_bytes()[:-9])
    sidecar(path).write_bytes(sidecar(made.features[0]).read_bytes())
    with pytest.raises(UserError, match=r"00000\.safetensors: differs"):
        score(evaluate_settings(), [path], made.reference, made.captions, tmp_path / "score.json")


def test_score_of_features_with_another_prefix_raises(made, evaluate_settings, tmp_path):
    settings = evaluate_settings(caption_prefix="so ")
    with pytest.raises(UserError, match=r"00000\.safetensors: other settings than expected \(caption_prefix: so , \)"):
        score(settings, made.features, made.reference, made.captions, tmp_path / "score.json")


def test_score_of_shards_of_two_networks_raises(made, evaluate_settings, tmp_path):
    other = tmp_path / "00001.safetensors"
    other.write_bytes(made.features[1].read_bytes())
    record = read_json(sidecar(made.features[1]))["record"]
    write_sidecar(other, record | {"weights": record["weights"] | {"clip": "c" * 64}})
    features = [made.features[0], other]
    with pytest.raises(UserError, match=r"00001\.safetensors: other settings than expected \(weights\.clip: "):
        score(evaluate_settings(), features, made.reference, made.captions, tmp_path / "score.json")


def test_score_of_shards_of_two_solvers_or_teachers_raises(made, tiny_teacher, evaluate_settings, tmp_path):
    def features(start: int, stop: int, solver: str) -> Path:
        samples, out = tmp_path / f"{solver}.tar", tmp_path / f"{solver}.safetensors"
        baseline = baseline_settings("teacher", solver=solver, steps=2, guidance_scale=2)
        generate(baseline, None, tiny_teacher, made.captions, start, stop, samples)
        extract_features(evaluate_settings().evaluate, samples, made.captions, out)
        return out

    shards = [features(0, 13, "ddim"), features(13, SAMPLES, "dpm-solver")]
    with pytest.raises(
        UserError, match=r"other settings than expected \(sampler\.solver: ddim, dpm-solver; settings_sha256: "
    ):
        score(evaluate_settings(), shards, made.reference, made.captions, tmp_path / "score.json")
    record = read_json(sidecar(shards[0]))["record"]
    alike = {key: record[key] for key in ("sampler", "settings_sha256")}
    write_sidecar(shards[1], read_json(sidecar(shards[1]))["record"] | alike)
    score(evaluate_settings(), shards, made.reference, made.captions, tmp_path / "score.json")
    write_sidecar(shards[0], record | {"teacher_sha256": "e" * 64})
    with pytest.raises(UserError, match=r"dpm-solver\.safetensors: other settings than expected \(teacher_sha256: "):
        score(evaluate_settings(), shards, made.reference, made.captions, tmp_path / "score.json")


def test_score_of_one_image_raises(made, evaluate_settings, tmp_path):
    reference = tmp_path / "features.safetensors"
    with pytest.raises(UserError, match=r"reference_samples=1"):
        build(evaluate_settings(reference_samples=1).evaluate, reference)
    assert not reference.exists()


def test_score_of_other_seeds_or_captions_raises(made, evaluate_settings, tmp_path):
    out = tmp_path / "score.json"
    with pytest.raises(UserError, match=r"00000\.safetensors: other settings than expected \(seed: 3, 0\)"):
        score(evaluate_settings(seed=3), made.features, made.reference, made.captions, out)
    shifted = tmp_path / "captions.txt"
    shifted.write_text("\n".join(["one more", *CAPTIONS]), encoding="utf-8")
    with pytest.raises(UserError, match=r"00000\.safetensors: made from other captions than lines 1–13"):
        score(evaluate_settings(), made.features, made.reference, shifted, out)
    with pytest.raises(UserError, match=r"00000\.tar: made from other captions than lines 1–13"):
        extract_features(evaluate_settings().evaluate, made.samples[0], shifted, tmp_path / "00000.safetensors")


def test_score_with_a_reference_of_another_network_raises(made, evaluate_settings, tmp_path):
    other = tmp_path / "features.safetensors"
    build(evaluate_settings(image_size=12).evaluate, other)
    with pytest.raises(
        UserError, match=r"features\.safetensors: made with another feature network, CLIP, DINOv2 or image size"
    ):
        score(evaluate_settings(), made.features, other, made.captions, tmp_path / "score.json")


def test_extract_features_without_networks_names_them(evaluate_settings, networks, tmp_path):
    with pytest.raises(UserError, match=r"evaluate\.feature_network\.source=.*nowhere.*no file .*config\.json"):
        build(evaluate_settings(feature_network=str(tmp_path / "nowhere")).evaluate, tmp_path / "x.safetensors")
    with pytest.raises(UserError, match=r"evaluate\.clip\.source=.*open_clip_config\.json"):
        clip(tmp_path / "nowhere")


def test_clip_without_weights_raises(networks, tmp_path):
    # open_clip itself would go on with random weights.
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": {}}))
    with pytest.raises(UserError, match=r"open_clip_model\.safetensors"):
        clip(tmp_path)
    (tmp_path / "open_clip_model.safetensors").write_bytes(b"truncated")
    with pytest.raises(UserError, match="cannot be loaded by open_clip"):
        clip(tmp_path)


def test_extract_features_of_another_size_raises(evaluate_settings, tmp_path):
    with pytest.raises(UserError, match=r"feature_size: .*24 x 24.*16 x 16\. Fix: set feature_size: 24"):
        build(evaluate_settings(feature_size=None).evaluate, tmp_path / "x.safetensors")

from pathlib import Path

import pytest
from small import CAPTIONS

from sid_core.config import ScoreSettings, load_config
from sid_core.data.images import pixel_sha256
from sid_core.data.prompts import COCO_CAPTIONS
from sid_core.data.shapes import scenes
from sid_core.data.shards import captions_sha256
from sid_core.evaluation.networks.weights import network_weights
from sid_core.evaluation.protocol import differences, protocol_hash, protocol_record
from sid_core.report.table import unlike_published
from sid_core.storage.files import digest, read_lines, sha256_file
from sid_core.storage.versions import versions

WEIGHTS = {"features": "f" * 64, "clip": "c" * 64}
REFERENCE = {"source": "embedded", "count": 30, "images_sha256": "a" * 64}


def hashed(settings, captions=CAPTIONS, weights=WEIGHTS, reference=REFERENCE, noise_device="cpu") -> str:
    return protocol_hash(protocol_record(settings, captions, weights, reference, noise_device))


def test_protocol_hash_of_any_other_score_setting_differs(evaluate_settings):
    same = hashed(evaluate_settings())
    others = [
        hashed(evaluate_settings(samples=19)),
        hashed(evaluate_settings(seed=1)),
        *(
            hashed(evaluate_settings(**{key: value}))
            for key, value in {
                "protocol": "other",
                "caption_prefix": "A photo depicts ",
                "image_size": 12,
                "feature_size": 12,
                "reference_samples": 19,
                "neighbours": 4,
            }.items()
        ),
        hashed(evaluate_settings(), captions=["another", *CAPTIONS[1:]]),
        hashed(evaluate_settings(), captions=[CAPTIONS[1], CAPTIONS[0], *CAPTIONS[2:]]),
        hashed(evaluate_settings(), weights=WEIGHTS | {"clip": "d" * 64}),
        hashed(evaluate_settings(), reference=REFERENCE | {"images_sha256": "b" * 64}),
        hashed(evaluate_settings(), noise_device="cuda"),
    ]
    assert len({same, *others}) == 1 + len(others)


def test_protocol_hash_of_another_batch_is_equal(evaluate_settings):
    same = hashed(evaluate_settings())
    assert hashed(evaluate_settings(batch=3)) == same
    assert hashed(evaluate_settings(), captions=[*CAPTIONS, "one that is not scored"]) == same


def test_differences_names_keys_and_values(evaluate_settings):
    records = [
        protocol_record(settings, CAPTIONS, WEIGHTS, REFERENCE, "cpu")
        for settings in (evaluate_settings(), evaluate_settings(samples=19, caption_prefix="a; b"))
    ]
    found = differences(*records)
    assert "samples: 20, 19" in found
    assert "kid.subset_size: 20, 19" in found
    assert "caption_prefix: , a; b" in found
    assert "captions_sha256" in found
    assert "neighbours" not in found


ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", ["sd15", "sd21-base", "sd21-768", "published"])
def test_protocol_of_published_experiments_equals_the_paper(name):
    config = load_config(ROOT / "config.yaml", ROOT / "experiments" / f"{name}.yaml")
    generate, evaluate = config.generate, config.evaluate
    settings = ScoreSettings(evaluate=evaluate, samples=generate.samples, seed=generate.seed)
    captions = read_lines(COCO_CAPTIONS, "caption")
    weights = {"features": evaluate.feature_network.sha256, "clip": "c" * 64}
    reference = {"source": "files", "count": evaluate.reference_samples, "images_sha256": "a" * 64}
    record = protocol_record(settings, captions, weights, reference, "cuda")
    assert record["name"] == "coco2014-30k"
    assert record["samples"] == len(captions) == 30_000
    assert len(set(captions)) == 29_420
    assert sha256_file(COCO_CAPTIONS) == "edabd2a556026cbf5d36a5fffa35ad43d7ba71b72f6d640b727c1edefb7f1945"
    assert record["captions_sha256"] == captions_sha256(captions)
    assert record["caption_prefix"] + captions[0] == f"A photo depicts {captions[0]}"
    assert record["seed"] == 0
    assert record["images"] == {
        "quantise": "x * 127.5 + 128 clipped to [0, 255], truncated",
        "image_size": 256,
        "image_resize": "centre crop, PIL LANCZOS, uint8",
        "feature_size": 299,
        "feature_resize": "clean-fid: PIL bicubic, float, per channel",
        "clip_resize": "open_clip preprocessing of the same image",
    }
    assert record["reference"]["count"] == 40_504
    assert weights["features"] == "f58cb9b6ec323ed63459aa4fb441fe750cfe39fafad6da5cb504a16f19e958f4"
    assert unlike_published(record) is None
    assert (evaluate.clip.source, evaluate.clip.revision[:8]) == ("laion/CLIP-ViT-g-14-laion2B-s12B-b42K", "4b0305ad")


def test_versions_lists_the_installed_ones():
    import torch

    assert versions()["torch"] == torch.__version__.split("+")[0] or versions()["torch"] == torch.__version__


def test_open_clip_tokenizer_gives_known_tokens():
    # open_clip's tokenizer is bundled: the published protocol's text needs no download.
    import open_clip

    [tokens] = open_clip.get_tokenizer("ViT-g-14")(["A photo depicts A dog."])
    assert tokens[:8].tolist() == [49406, 320, 1125, 29340, 320, 1929, 269, 49407]
    assert not tokens[8:].any()


def test_protocol_of_the_embedded_experiment_keeps_its_hash():
    """Pin it: a change of settings or constants must not make earlier scores incomparable unnoticed."""
    config = load_config(ROOT / "config.yaml")
    settings = ScoreSettings(evaluate=config.evaluate, samples=config.generate.samples, seed=config.generate.seed)
    weights = {
        "features": network_weights(config.evaluate, "feature_network").identity,
        "clip": network_weights(config.evaluate, "clip").identity,
    }
    images = [pixel_sha256(image) for image in scenes.draw("reference", 10_000)[0]]  # on every processor the same
    reference = {"source": "embedded", "count": 10_000, "images_sha256": digest(images)}
    captions = scenes.draw("evaluation", settings.samples)[1]
    assert hashed(settings, captions, weights, reference).startswith("f257d38e5284")

from small import CAPTIONS

from sid_core.evaluation.protocol import differences, protocol_hash, protocol_record
from sid_core.evaluation.versions import versions

WEIGHTS = {"features": "f" * 64, "clip": "c" * 64}
REFERENCE = {"source": "embedded", "count": 30, "images_sha256": "a" * 64}


def hashed(settings, captions=CAPTIONS, weights=WEIGHTS, reference=REFERENCE, noise_device="cpu") -> str:
    return protocol_hash(protocol_record(settings, captions, weights, reference, noise_device))


def test_whatever_can_move_a_score_moves_the_hash(evaluate_settings):
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
                "kid_subsets": 5,
                "kid_subset_size": 9,
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


def test_what_cannot_move_a_score_does_not_move_the_hash(evaluate_settings):
    same = hashed(evaluate_settings())
    assert hashed(evaluate_settings(batch=3, bootstrap=7, jackknife_groups=3)) == same
    assert hashed(evaluate_settings(), captions=[*CAPTIONS, "one that is not scored"]) == same


def test_differences_are_named(evaluate_settings):
    records = [
        protocol_record(settings, CAPTIONS, WEIGHTS, REFERENCE, "cpu")
        for settings in (evaluate_settings(), evaluate_settings(samples=19, kid_subsets=5, caption_prefix="a; b"))
    ]
    found = differences(*records)
    assert "samples: 20, 19" in found
    assert "kid.subsets: 4, 5" in found
    assert "caption_prefix: , a; b" in found
    assert "captions_sha256" in found
    assert "neighbours" not in found


def test_versions_are_those_installed():
    import torch

    assert versions()["torch"] == torch.__version__.split("+")[0] or versions()["torch"] == torch.__version__


def test_tokens_of_a_caption():
    """open_clip's tokenizer is bundled: the published protocol's text needs no download."""
    import open_clip

    [tokens] = open_clip.get_tokenizer("ViT-g-14")(["A photo depicts A dog."])
    assert tokens[:8].tolist() == [49406, 320, 1125, 29340, 320, 1929, 269, 49407]
    assert not tokens[8:].any()

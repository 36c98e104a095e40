"""Build the protocol, the record of everything that comparable scores share, and its hash.

Settings that cannot change a score, such as the batch size, are not in it. Versions of libraries are recorded beside it: they may
change the last digit, and a table that required equal ones would compare nothing.
"""

from typing import TYPE_CHECKING

from ..data.images import QUANTISE
from ..data.shards import captions_sha256
from ..errors import UserError
from ..storage.files import digest, flat

if TYPE_CHECKING:
    from ..config import FeatureSettings, ScoreSettings

FORMULAS = 1  # raise it when a formula or a step of the code changes a score
SEED_RULE = "sample i: caption i; torch.Generator().manual_seed(seed + i), float32"
KID_SUBSETS, KID_SUBSET_SIZE, KID_SEED = 100, 1000, 2020  # torch-fidelity's defaults


def image_record(settings: "FeatureSettings") -> dict:
    """Return the record of the preprocessing of images for the networks."""
    return {
        "quantise": QUANTISE,
        "image_size": settings.image_size,
        "image_resize": settings.image_size and "centre crop, PIL LANCZOS, uint8",
        "feature_size": settings.feature_size,
        "feature_resize": settings.feature_size and "clean-fid: PIL bicubic, float, per channel",
        "clip_resize": "open_clip preprocessing of the same image",
    }


def protocol_record(
    settings: "ScoreSettings", captions: list[str], weights: dict, reference: dict, noise_device: str
) -> dict:
    """Return the protocol record of the first `settings.samples` captions' samples; a UserError if there are fewer.

    Args:
        weights: `identity` of the networks, {"features", "clip"}.
        reference: {"source", "count", "images_sha256"}.
        noise_device: CUDA's random stream differs from the CPU's.
    """
    evaluate, samples = settings.evaluate, settings.samples
    if len(captions) < samples:
        raise UserError(f"generate.samples={samples}: only {len(captions)} captions; lower it or give more captions")
    subset_size = min(KID_SUBSET_SIZE, samples, evaluate.reference_samples)
    return {
        "name": evaluate.protocol,
        "formulas": FORMULAS,
        "samples": samples,
        "captions_sha256": captions_sha256(captions[:samples]),
        "caption_prefix": evaluate.caption_prefix,
        "seed": settings.seed,
        "seed_rule": SEED_RULE,
        "noise_device": noise_device,
        "images": image_record(evaluate),
        "weights": weights,
        "reference": reference,
        "kid": {"subsets": KID_SUBSETS, "subset_size": subset_size, "seed": KID_SEED},
        "precision_recall": {"neighbours": evaluate.neighbours},
    }


def protocol_hash(record: dict) -> str:
    """Return the hex sha256 by which scores are compared."""
    return digest(record)


def differences(first: dict, second: dict) -> str:
    """List the differences of two protocol records for a message, as in `seed: 0, 1; samples: 5000, 1000`."""
    a, b = flat(first), flat(second)
    return "; ".join(
        f"{key}: {a.get(key)}, {b.get(key)}" for key in sorted(a.keys() | b.keys()) if a.get(key) != b.get(key)
    )

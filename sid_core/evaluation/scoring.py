"""Features to one score: FID, CLIP score and all other metrics, with their uncertainty and their protocol."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..cluster.machine import device
from ..errors import UserError
from ..pipeline.paths import Row
from ..storage.files import read_lines, write_json
from ..storage.versions import versions
from .features import check_captions, load_features, reference_record
from .metrics.frechet import Gaussian, Reference, fid
from .metrics.kernels import CMMD_SCALE, CMMD_SIGMA, cmmd, kid
from .metrics.neighbours import neighbours
from .metrics.samples import check_samples, clip_score, mean, vendi
from .metrics.uncertainty import Estimate
from .pairs import METRICS, replicates_record
from .protocol import KID_SEED, differences, image_record, protocol_hash, protocol_record

if TYPE_CHECKING:
    from ..config import Evaluate, ScoreSettings

# what defines a metric beside the protocol, which says how images are seen, the neighbours and CLIP's weights
RECIPES = {
    "density": {"formula": "arXiv 2002.09797, neighbours as of precision"},
    "coverage": {"formula": "arXiv 2002.09797, neighbours as of precision"},
    "cmmd": {"formula": "arXiv 2401.09603 with the protocol's CLIP", "sigma": CMMD_SIGMA, "scale": CMMD_SCALE},
    "vendi": {"formula": "arXiv 2210.02410, cosine of the protocol's CLIP embeddings"},
}
# the setting without which a metric is not computed
NEEDS = {"fd_dinov2": "dinov2", "hps": "hps", "pickscore": "pickscore"}


def score(settings: "ScoreSettings", features: Sequence[Path], reference: Path, captions: Path, out: Path) -> None:
    """Write score.json of a run or baseline from all of its feature shards, and replicates.json beside it.

    Raises:
        UserError: a shard is damaged, missing or of another protocol; samples are missing, repeated or too few.
    """
    evaluate = settings.evaluate
    if not features:
        raise UserError("no feature shards given: expected those of every sample shard; extract them and run again")
    _check_counts(settings)
    parts = [load_features(path) for path in features]
    records = [record for _, record in parts]
    samples = [sample for record in records for sample in record["samples"]]
    check_samples(samples, settings.samples)
    lines = read_lines(captions, "caption")
    _check_origin(settings, features, records, lines)
    weights = records[0]["weights"]
    compared_with = reference_record(reference, records[0], evaluate)
    protocol = protocol_record(settings, lines, weights, compared_with, records[0]["noise_device"])
    tensors = {key: rows.to(device()) for key, rows in _in_order([tensors for tensors, _ in parts]).items()}
    real = {key: rows.to(device()) for key, rows in load_features(reference)[0].items()}

    estimates = _estimates(evaluate, tensors, real)
    errors = [sample["eps_error"] for sample in samples if sample["eps_error"] is not None]
    write_json(Row(out.parent).replicates, {name: replicates_record(estimate) for name, estimate in estimates.items()})
    write_json(
        out,
        {
            "samples": len(samples),
            **{name: estimates[name].value if name in estimates else None for name in METRICS},
            **{f"{name}_se": estimates[name].se for name in ("fid", "clip")},
            "standard_errors": {name: estimate.se for name, estimate in estimates.items()},
            "intervals": {name: [estimate.low, estimate.high] for name, estimate in estimates.items()},
            "not_computed": {name: f"evaluate.{key} is null" for name, key in NEEDS.items() if name not in estimates},
            "recipes": {name: RECIPES[name] for name in estimates if name in RECIPES} | records[0]["extras"],
            "teacher_eps_error": sum(errors) / len(errors) if errors else None,
            "images_per_s": _speed(records),
            "nfe": records[0]["nfe"],
            "sampler": records[0].get("sampler"),
            "generator_sha256": records[0]["generator_sha256"],
            "generated_in": records[0]["precision"],
            "generated_on": ", ".join(sorted({record["device"] for record in records})),
            "protocol": protocol,
            "protocol_hash": protocol_hash(protocol),
            "weights": weights,
            "versions": versions(),
        },
    )


def _estimates(evaluate: "Evaluate", tensors: dict[str, Tensor], real: dict[str, Tensor]) -> dict[str, Estimate]:
    """Every metric whose networks have looked at the samples, with its uncertainty, in the order of the tables."""
    groups = evaluate.jackknife_groups
    features, clip_image = tensors["features"], tensors["clip_image"]
    distance = fid(features, Reference(Gaussian.fit(real["features"])), groups)
    kernel = kid(features, real["features"], evaluate.kid_subsets, evaluate.kid_subset_size, KID_SEED, groups)
    found = {
        "fid": distance.sample,
        "fid_inf": distance.infinity,
        "clip": clip_score(clip_image, tensors["clip_text"], evaluate.bootstrap),
        "kid": kernel,
        **neighbours(features, real["features"], evaluate.neighbours, groups)._asdict(),
        "cmmd": cmmd(clip_image, real["clip_image"], groups),
        "vendi": vendi(clip_image, groups),
    }
    if "dinov2" in tensors:
        found["fd_dinov2"] = fid(tensors["dinov2"], Reference(Gaussian.fit(real["dinov2"])), groups).sample
    return found | {name: mean(tensors[name], evaluate.bootstrap) for name in ("hps", "pickscore") if name in tensors}


def _check_origin(settings: "ScoreSettings", features: Sequence[Path], records: list[dict], lines: list[str]) -> None:
    """Every shard was made as these settings say, and all alike: by one generator, teacher and solver, seen by the same networks.

    Raises:
        UserError: names the shard, what it was made with and what was expected.
    """
    wanted = {name for name, key in NEEDS.items() if getattr(settings.evaluate, key) is not None}
    if set(records[0]["extras"]) != wanted:
        raise UserError(
            f"{features[0]}: made for {', '.join(sorted(records[0]['extras'])) or 'no further metric'}, expected "
            f"{', '.join(sorted(wanted)) or 'none'}, as evaluate says; extract the features again"
        )
    # features of earlier versions do not name all of these
    same = (
        *("weights", "extras", "noise_device", "precision", "nfe", "sampler"),
        *("teacher_sha256", "generator_sha256", "settings_sha256"),
    )
    expected = {
        "seed": settings.seed,
        "images": image_record(settings.evaluate),
        "caption_prefix": settings.evaluate.caption_prefix,
    } | {key: records[0].get(key) for key in same}
    for path, record in zip(features, records, strict=True):
        apart = differences(expected, {key: record.get(key) for key in expected})
        if apart:
            raise UserError(f"{path}: made otherwise than expected ({apart}); delete it and run again")
        check_captions(path, record, lines)


def _check_counts(settings: "ScoreSettings") -> None:
    """Enough samples for every formula: `fid` looks at quarters of the set, and leaves out two groups."""
    groups, samples = settings.evaluate.jackknife_groups, settings.samples
    if samples < 8:
        raise UserError(f"generate.samples={samples}: a score needs 8, better thousands; raise it")
    if not 3 <= groups <= samples // 2:
        raise UserError(f"evaluate.jackknife_groups={groups}: expected 3 to {samples // 2}, half of the samples")


def _in_order(parts: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Shards joined and sorted by sample index."""
    order = torch.cat([part["index"] for part in parts]).argsort()
    return {key: torch.cat([part[key] for part in parts])[order] for key in parts[0]}


def _speed(records: list[dict]) -> float | None:
    """Return images per second over all shards, images by the time they took; None where no network made them."""
    if None in [record["images_per_s"] for record in records]:
        return None
    counts = [len(record["samples"]) for record in records]
    return sum(counts) / sum(count / record["images_per_s"] for count, record in zip(counts, records, strict=True))

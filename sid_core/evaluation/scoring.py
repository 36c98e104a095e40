"""Features to one score: FID, CLIP score, KID, precision and recall, with their uncertainty and their protocol."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..errors import UserError
from ..files import read_lines, write_json
from ..machine import device
from .devices import exact_products
from .features import check_captions, load_features, reference_record
from .frechet import Gaussian, Reference, fid
from .metrics import check_samples, clip_score, kid, precision_recall
from .protocol import KID_SEED, differences, image_record, protocol_hash, protocol_record
from .versions import versions

if TYPE_CHECKING:
    from ..config import ScoreSettings


def score(settings: "ScoreSettings", features: Sequence[Path], reference: Path, captions: Path, out: Path) -> None:
    """Write score.json of a run or baseline from all of its feature shards.

    Raises:
        UserError: a shard is damaged, missing or of another protocol; samples are missing, repeated or too few.
    """
    evaluate = settings.evaluate
    if not features:
        raise UserError("no feature shards given: expected those of every sample shard; extract them and run again")
    _check_counts(settings)
    exact_products()
    parts = [load_features(path) for path in features]
    records = [record for _, record in parts]
    samples = [sample for record in records for sample in record["samples"]]
    check_samples(samples, settings.samples)
    lines = read_lines(captions, "caption")
    _check_origin(settings, features, records, lines)
    weights = records[0]["weights"]
    compared_with = reference_record(reference, weights["features"], evaluate)
    protocol = protocol_record(settings, lines, weights, compared_with, records[0]["noise_device"])
    tensors = _in_order([tensors for tensors, _ in parts])
    generated, real = (rows.to(device()) for rows in (tensors["features"], load_features(reference)[0]["features"]))

    distance = fid(generated, Reference(Gaussian.fit(real)), evaluate.jackknife_groups)
    clip, clip_se = clip_score(tensors["clip_image"], tensors["clip_text"], evaluate.bootstrap)
    precision, recall = precision_recall(generated, real, evaluate.neighbours)
    errors = [sample["eps_error"] for sample in samples if sample["eps_error"] is not None]
    write_json(
        out,
        {
            "samples": len(samples),
            "fid": distance.value,
            "fid_se": distance.se,
            "fid_inf": distance.infinity,
            "clip": clip,
            "clip_se": clip_se,
            "kid": kid(generated, real, evaluate.kid_subsets, evaluate.kid_subset_size, KID_SEED),
            "precision": precision,
            "recall": recall,
            "teacher_eps_error": sum(errors) / len(errors) if errors else None,
            "images_per_s": _speed(records),
            "nfe": records[0]["nfe"],
            "generator_sha256": records[0]["generator_sha256"],
            "generated_in": records[0]["precision"],
            "generated_on": ", ".join(sorted({record["device"] for record in records})),
            "protocol": protocol,
            "protocol_hash": protocol_hash(protocol),
            "weights": weights,
            "versions": versions(),
        },
    )


def _check_origin(settings: "ScoreSettings", features: Sequence[Path], records: list[dict], lines: list[str]) -> None:
    """Every shard was made as these settings say, and all of them alike: by one generator, seen by the same networks.

    Raises:
        UserError: names the shard, what it was made with and what was expected.
    """
    same = ("weights", "noise_device", "precision", "generator_sha256", "nfe")
    expected = {
        "seed": settings.seed,
        "images": image_record(settings.evaluate),
        "caption_prefix": settings.evaluate.caption_prefix,
    } | {key: records[0][key] for key in same}
    for path, record in zip(features, records, strict=True):
        apart = differences(expected, {key: record[key] for key in expected})
        if apart:
            raise UserError(f"{path}: made otherwise than expected ({apart}); delete it and run again")
        check_captions(path, record, lines)


def _check_counts(settings: "ScoreSettings") -> None:
    """Enough samples for every formula; `fid` also looks at quarters of the set."""
    groups, samples = settings.evaluate.jackknife_groups, settings.samples
    if samples < 8:
        raise UserError(f"generate.samples={samples}: a score needs 8, better thousands; raise it")
    if not 2 <= groups <= samples // 2:
        raise UserError(f"evaluate.jackknife_groups={groups}: expected 2 to {samples // 2}, half of the samples")


def _in_order(parts: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Shards joined and sorted by sample index."""
    order = torch.cat([part["index"] for part in parts]).argsort()
    return {key: torch.cat([part[key] for part in parts])[order] for key in parts[0]}


def _speed(records: list[dict]) -> float:
    """Images per second over all shards: images by the time they took."""
    counts = [len(record["samples"]) for record in records]
    return sum(counts) / sum(count / record["images_per_s"] for count, record in zip(counts, records, strict=True))

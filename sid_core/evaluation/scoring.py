"""Compute the score of a run from features: all metrics with their uncertainty, and the protocol."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..cluster.machine import device
from ..errors import UserError
from ..pipeline.paths import Row
from ..storage.files import digest, read_json, read_lines, sha256_file, write_json
from ..storage.versions import versions
from .features import check_captions, load_features, reference_record
from .metrics.catalogue import METRICS, headline
from .metrics.compute import Sets, estimates
from .metrics.samples import check_samples, repeated_captions
from .pairs import replicates_record
from .protocol import differences, image_record, protocol_hash, protocol_record

if TYPE_CHECKING:
    from ..config import Evaluate, ScoreSettings

# by what a metric needs, where no setting is the reason
ABSENT = {
    "repeated": "fewer than two captions occur several times",
    "patches": "the stored images, or almost all reference images, are smaller than the crop",
    "fid_teacher": "no row of this one's teacher to compare with",
}


def score(
    settings: "ScoreSettings",
    features: Sequence[Path],
    reference: Path,
    captions: Path,
    out: Path,
    teacher_scores: Sequence[Path] | None = None,
) -> None:
    """Write score.json of a run or baseline from all of its feature shards, and replicates.json beside it.

    Args:
        teacher_scores: score.json of baselines of the teacher; FID-T compares with the row of the lowest FID.

    Raises:
        UserError: a shard is damaged, missing or of another protocol; samples are missing, repeated or too few.
    """
    evaluate = settings.evaluate
    if not features:
        raise UserError("no feature shards given: expected those of every sample shard. Fix: extract them")
    if settings.samples < 8:  # `fid` is computed on quarters of the set, and leaves out two of at least four groups
        raise UserError(f"generate.samples={settings.samples}: expected 8, better thousands")
    parts = [load_features(path) for path in features]
    records = [record for _, record in parts]
    samples = [sample for record in records for sample in record["samples"]]
    check_samples(samples, settings.samples)
    lines = read_lines(captions, "caption")
    _check_origin(settings, features, records, lines)
    weights = records[0]["weights"]
    compared_with = reference_record(reference, records[0], evaluate)
    protocol = protocol_record(settings, lines, weights, compared_with, records[0]["noise_device"])
    sets = _in_order([tensors for tensors, _ in parts]), load_features(reference)[0]
    if (repeated := repeated_captions(lines[: settings.samples])) is not None:
        sets[0]["repeated"] = repeated
    extras = dict(records[0]["extras"])
    if "patches" in extras:
        extras["patches"] = extras["patches"] | {"reference_images": _drop_small(*sets)}
    if teacher_scores and (teacher := _teacher_features(teacher_scores, features, records[0], protocol)):
        sets[1]["fid_teacher"], extras["fid_teacher"] = teacher
    on_device = ({key: rows.to(device()) for key, rows in tensors.items()} for tensors in sets)
    found = estimates(Sets(*on_device, evaluate))
    recipes = {key: METRICS[key].recipe | extras.get(METRICS[key].needs, {}) for key in found}
    errors = [sample["eps_error"] for sample in samples if sample["eps_error"] is not None]
    write_json(Row(out.parent).replicates, {key: replicates_record(estimate) for key, estimate in found.items()})
    write_json(
        out,
        {
            "samples": len(samples),
            **{key: found[key].value if key in found else None for key in METRICS},
            **{f"{metric.key}_se": found[metric.key].se for metric in headline()},
            "standard_errors": {key: estimate.se for key, estimate in found.items()},
            "intervals": {key: [estimate.low, estimate.high] for key, estimate in found.items()},
            "not_computed": {key: _reason(METRICS[key].needs, evaluate) for key in METRICS if key not in found},
            "recipes": {key: recipe for key, recipe in recipes.items() if recipe},
            "teacher_eps_error": sum(errors) / len(errors) if errors else None,
            "images_per_s": _throughput(records),
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


def _drop_small(samples: dict[str, Tensor], reference: dict[str, Tensor]) -> int:
    """Remove the patches of reference images smaller than the crop; return how many are left, 0 where all are removed.

    Samples have one size, so that all or none are smaller; then the patches of both are removed.
    """
    fits = reference["patches"].isfinite().all(1)
    if samples["patches"].isfinite().all() and fits.sum() > 1:
        reference["patches"] = reference["patches"][fits]
        return int(fits.sum())
    del samples["patches"], reference["patches"]
    return 0


def _teacher_features(
    paths: Sequence[Path], features: Sequence[Path], made: dict, protocol: dict
) -> tuple[Tensor, dict] | None:
    """Return features (N, D) and record of the teacher's row of the lowest FID; None if that is of another teacher."""
    scores = {path: read_json(path) for path in paths}
    best = min(paths, key=lambda path: scores[path]["fid"])
    if apart := differences(scores[best]["protocol"], protocol):
        raise UserError(f"{best}: of another protocol ({apart}). Fix: delete it and run again")
    shards = [Row(best.parent).features(path.stem) for path in features]
    parts = [load_features(shard) for shard in shards]
    if parts[0][1]["teacher_sha256"] != made["teacher_sha256"]:
        return None
    record = {"row": best.parent.name, "features_sha256": digest([sha256_file(shard) for shard in shards])}
    return _in_order([tensors for tensors, _ in parts])["features"], record


def _reason(need: str, evaluate: "Evaluate") -> str:
    """Return why a metric is not computed that needs a setting or repeated captions."""
    value = getattr(evaluate, need, True)
    return ABSENT[need] if value else f"evaluate.{need} is {json.dumps(value)}"


def _check_origin(settings: "ScoreSettings", features: Sequence[Path], records: list[dict], lines: list[str]) -> None:
    """Check that all shards were made with these settings by one generator, teacher and solver, and encoded by the same networks.

    Raises:
        UserError: names the shard and the differences.
    """
    wanted = settings.evaluate.networks().keys() - {"feature_network", "clip"}
    wanted |= {"patches"} if settings.evaluate.patches else set()
    if set(records[0]["extras"]) != wanted:
        raise UserError(
            f"{features[0]}: made for {', '.join(sorted(records[0]['extras'])) or 'no further metric'}, expected "
            f"{', '.join(sorted(wanted)) or 'none'} by evaluate. Fix: extract the features again"
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
        if apart := differences(expected, {key: record.get(key) for key in expected}):
            raise UserError(f"{path}: other settings than expected ({apart}). Fix: delete it and run again")
        check_captions(path, record, lines)


def _in_order(parts: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Concatenate shards and sort their rows by sample index."""
    order = torch.cat([part["index"] for part in parts]).argsort()
    return {key: torch.cat([part[key] for part in parts])[order] for key in parts[0]}


def _throughput(records: list[dict]) -> float | None:
    """Return images per second of all shards together; None if no network generated them."""
    if None in [record["images_per_s"] for record in records]:
        return None
    counts = [len(record["samples"]) for record in records]
    return sum(counts) / sum(count / record["images_per_s"] for count, record in zip(counts, records, strict=True))

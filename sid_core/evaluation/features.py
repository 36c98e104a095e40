"""Shards of samples to shards of features, and the reference images to theirs.

Features are stored per sample, not as moments: every metric, its uncertainty and metrics yet to come are computed from them
without looking at an image again.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..errors import UserError
from ..files import atomic_path, digest, read_lines, verify_sidecar, write_sidecar
from ..shapes import scenes
from .extractors import Clip, Features
from .images import enlarge, pixel_sha256, shrink
from .progress import Progress
from .protocol import image_record, protocol_hash, protocol_record
from .shards import captions_sha256, ranges, read_shard
from .versions import versions

if TYPE_CHECKING:
    from ..config import Evaluate, EvaluateSettings


def build_reference(settings: "EvaluateSettings", out: Path) -> None:
    """Write features of the reference images to `out` (.safetensors: index (N,), features (N, D)) with a sidecar.

    Raises:
        UserError: too few images, one of them twice, or of a size that the feature network does not take.
    """
    evaluate = settings.evaluate
    if evaluate.reference_samples < 2:
        raise UserError(
            f"evaluate.reference_samples={evaluate.reference_samples}: a covariance needs 2, better thousands"
        )
    network = Features(evaluate.feature_network)
    progress = Progress(evaluate.reference_samples, "reference")
    features, hashes = [], []
    for images in _embedded_reference(evaluate):
        hashes += [pixel_sha256(image) for image in images]
        features.append(network([_for_features(_stored(image, evaluate), evaluate) for image in images]))
        progress.update(len(hashes))
    if len(set(hashes)) != len(hashes):
        raise UserError(f"{out}: the reference holds an image twice; its source is damaged")
    tensors = {"index": torch.arange(len(hashes)), "features": torch.cat(features)}
    check_finite(tensors["features"], tensors["index"], str(out))
    record = {
        "source": evaluate.reference,
        "count": len(hashes),
        "images_sha256": digest(hashes),
        "weights": {"features": network.sha256},
        "images": image_record(evaluate),
        "versions": versions(),
    }
    _save(out, tensors, record)


def extract_features(settings: "EvaluateSettings", shard: Path, captions: Path, reference: Path, out: Path) -> None:
    """Write features and CLIP embeddings of a shard's samples to `out` (.safetensors) with a sidecar.

    Raises:
        UserError: the shard is damaged, or was made from other captions or seeds than these settings say.
    """
    evaluate = settings.evaluate
    lines = read_lines(captions, "caption")
    sidecar = verify_sidecar(shard)
    made = sidecar["record"]
    _check_origin(settings, shard, made, lines)
    network, clip = Features(evaluate.feature_network), Clip(evaluate.clip)
    weights = {"features": network.sha256, "clip": clip.sha256}
    compared_with = reference_record(reference, network.sha256, evaluate)
    protocol = protocol_record(settings, lines, weights, compared_with, made["noise_device"])

    progress = Progress(len(made["samples"]), f"features of {shard.name}")
    index, features, embeddings = [], [], []
    for indices, images in read_shard(shard, evaluate.batch):
        stored = [_stored(image, evaluate) for image in images]
        features.append(network([_for_features(image, evaluate) for image in stored]))
        embeddings.append(clip.images(stored))
        index += indices
        progress.update(len(index))
    tensors = {
        "index": torch.tensor(index),
        "features": torch.cat(features),
        "clip_image": torch.cat(embeddings),
        "clip_text": clip.texts([evaluate.caption_prefix + lines[i] for i in index]),
    }
    for name in ("features", "clip_image", "clip_text"):
        check_finite(tensors[name], tensors["index"], f"{shard}: {name}")
    carried = ("start", "stop", "samples", "images_per_s", "nfe", "generator_sha256")
    record = {
        "samples_sha256": sidecar["sha256"],
        "weights": weights,
        "protocol": protocol,
        "protocol_hash": protocol_hash(protocol),
        "versions": versions(),
    }
    _save(out, tensors, record | {key: made[key] for key in carried})


def load_features(path: Path) -> tuple[dict[str, Tensor], dict]:
    """Tensors and record of a features file, checked against its sidecar and for NaN.

    Raises:
        UserError: missing, damaged, not finite; the message names the file.
    """
    record = verify_sidecar(path)["record"]
    tensors = load_file(path)
    for name, rows in tensors.items():
        if name != "index":
            check_finite(rows, tensors["index"], f"{path}: {name}")
    return tensors, record


def check_finite(features: Tensor, index: Tensor, source: str) -> None:
    """Refuse NaN and infinity: one such row would make every metric NaN.

    Raises:
        UserError: names `source` and the samples.
    """
    bad = index[~features.isfinite().all(1)]
    if len(bad):
        raise UserError(
            f"{source}: features of samples {ranges(bad.tolist())} are not finite; delete it and extract the features again"
        )


def reference_record(path: Path, features_sha256: str, evaluate: "Evaluate") -> dict:
    """What a protocol says of its reference images.

    Raises:
        UserError: the reference is damaged, or was seen by another network or at another size than the samples.
    """
    record = verify_sidecar(path)["record"]
    if record["weights"]["features"] != features_sha256 or record["images"] != image_record(evaluate):
        raise UserError(
            f"{path}: made with another feature network or image size than the samples; build the reference again"
        )
    return {key: record[key] for key in ("source", "count", "images_sha256")}


def _check_origin(settings: "EvaluateSettings", shard: Path, made: dict, lines: list[str]) -> None:
    if made["seed"] != settings.seed:
        raise UserError(
            f"{shard}: made with seed {made['seed']}, the settings say seed={settings.seed}; generate it again"
        )
    if captions_sha256(lines[made["start"] : made["stop"]]) != made["captions_sha256"]:
        raise UserError(
            f"{shard}: made from other captions than lines {made['start'] + 1}–{made['stop']} of the caption file; "
            "generate it again"
        )


def _embedded_reference(evaluate: "Evaluate") -> Iterator[np.ndarray]:
    for start in range(0, evaluate.reference_samples, evaluate.batch):
        count = min(evaluate.batch, evaluate.reference_samples - start)
        yield scenes.draw("reference", count, start)[0]


def _stored(image: np.ndarray, evaluate: "Evaluate") -> np.ndarray:
    """The 8-bit image that both networks start from."""
    return shrink(image, evaluate.image_size) if evaluate.image_size else image


def _for_features(image: np.ndarray, evaluate: "Evaluate") -> np.ndarray:
    """The image as the feature network takes it."""
    return enlarge(image, evaluate.feature_size) if evaluate.feature_size else image


def _save(out: Path, tensors: dict[str, Tensor], record: dict) -> None:
    with atomic_path(out) as temporary:
        save_file(tensors, temporary)
    write_sidecar(out, record)

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
from .protocol import image_record
from .shards import captions_sha256, ranges, read_shard
from .versions import versions

if TYPE_CHECKING:
    from ..config import FeatureSettings, ReferenceSettings


# what a score needs to know of how the samples were made
CARRIED = (
    "start",
    "stop",
    "seed",
    "noise_device",
    "captions_sha256",
    "generator_sha256",
    "nfe",
    "images_per_s",
    "samples",
)


def build_reference(settings: "ReferenceSettings", out: Path) -> None:
    """Write features of the reference images to `out` (.safetensors: index (N,), features (N, D)) with a sidecar.

    Raises:
        UserError: too few images, one of them twice, or of a size that the feature network does not take.
    """
    if settings.reference_samples < 2:
        raise UserError(
            f"evaluate.reference_samples={settings.reference_samples}: a covariance needs 2, better thousands"
        )
    network = Features(settings.feature_network)
    progress = Progress(settings.reference_samples, "reference")
    features, hashes = [], []
    for images in _embedded_reference(settings):
        hashes += [pixel_sha256(image) for image in images]
        features.append(network([_for_features(_stored(image, settings), settings) for image in images]))
        progress.update(len(hashes))
    if len(set(hashes)) != len(hashes):
        raise UserError(f"{out}: the reference holds an image twice; its source is damaged")
    tensors = {"index": torch.arange(len(hashes)), "features": torch.cat(features)}
    check_finite(tensors["features"], tensors["index"], str(out))
    record = {
        "source": settings.reference,
        "count": len(hashes),
        "images_sha256": digest(hashes),
        "weights": {"features": network.sha256},
        "images": image_record(settings),
        "versions": versions(),
    }
    _save(out, tensors, record)


def extract_features(settings: "FeatureSettings", shard: Path, captions: Path, out: Path) -> None:
    """Write features and CLIP embeddings of a shard's samples to `out` (.safetensors) with a sidecar.

    Raises:
        UserError: the shard is damaged, or was made from other captions.
    """
    lines = read_lines(captions, "caption")
    sidecar = verify_sidecar(shard)
    made = sidecar["record"]
    check_captions(shard, made, lines)
    network, clip = Features(settings.feature_network), Clip(settings.clip)

    progress = Progress(len(made["samples"]), f"features of {shard.name}")
    index, features, embeddings = [], [], []
    for indices, images in read_shard(shard, settings.batch):
        stored = [_stored(image, settings) for image in images]
        features.append(network([_for_features(image, settings) for image in stored]))
        embeddings.append(clip.images(stored))
        index += indices
        progress.update(len(index))
    tensors = {
        "index": torch.tensor(index),
        "features": torch.cat(features),
        "clip_image": torch.cat(embeddings),
        "clip_text": clip.texts([settings.caption_prefix + lines[i] for i in index]),
    }
    for name in ("features", "clip_image", "clip_text"):
        check_finite(tensors[name], tensors["index"], f"{shard}: {name}")
    record = {
        "samples_sha256": sidecar["sha256"],
        "weights": {"features": network.sha256, "clip": clip.sha256},
        "images": image_record(settings),
        "caption_prefix": settings.caption_prefix,
        "versions": versions(),
    }
    _save(out, tensors, record | {key: made[key] for key in CARRIED})


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


def reference_record(path: Path, features_sha256: str, settings: "FeatureSettings") -> dict:
    """What a protocol says of its reference images.

    Raises:
        UserError: the reference is damaged, or was seen by another network or at another size than the samples.
    """
    record = verify_sidecar(path)["record"]
    if record["weights"]["features"] != features_sha256 or record["images"] != image_record(settings):
        raise UserError(
            f"{path}: made with another feature network or image size than the samples; build the reference again"
        )
    return {key: record[key] for key in ("source", "count", "images_sha256")}


def check_captions(path: Path, made: dict, lines: list[str]) -> None:
    """Refuse samples, or features of samples, whose record `made` names other captions than `lines`.

    Raises:
        UserError: names the file and the lines.
    """
    if captions_sha256(lines[made["start"] : made["stop"]]) != made["captions_sha256"]:
        raise UserError(
            f"{path}: made from other captions than lines {made['start'] + 1}–{made['stop']} of the caption file; "
            "generate it again"
        )


def _embedded_reference(settings: "ReferenceSettings") -> Iterator[np.ndarray]:
    for start in range(0, settings.reference_samples, settings.batch):
        count = min(settings.batch, settings.reference_samples - start)
        yield scenes.draw("reference", count, start)[0]


def _stored(image: np.ndarray, settings: "FeatureSettings") -> np.ndarray:
    """The 8-bit image that both networks start from."""
    return shrink(image, settings.image_size) if settings.image_size else image


def _for_features(image: np.ndarray, settings: "FeatureSettings") -> np.ndarray:
    """The image as the feature network takes it."""
    return enlarge(image, settings.feature_size) if settings.feature_size else image


def _save(out: Path, tensors: dict[str, Tensor], record: dict) -> None:
    with atomic_path(out) as temporary:
        save_file(tensors, temporary)
    write_sidecar(out, record)

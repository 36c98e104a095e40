"""Extract features from shards of samples and from the reference images.

They are stored per sample, not as moments: every metric, its uncertainty and later metrics need no image again.
"""

import shutil
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..data.images import pixel_sha256, shrink
from ..data.pool import batches, in_order
from ..data.reference_images import cached_features, reference_images
from ..data.shards import captions_sha256, decode_member, ranges, read_members
from ..errors import UserError
from ..storage.files import atomic_path, digest, read_lines, verify_sidecar, write_sidecar
from ..storage.progress import Progress
from ..storage.versions import versions
from .networks.optional import Patches, Preference, optional_networks
from .networks.required import Clip, Features
from .protocol import image_record

if TYPE_CHECKING:
    from ..config import BuildReferenceSettings, FeatureSettings
    from ..data.reference_images import ReferenceImages

# of a shard's record, which a score needs
CARRIED = (
    *("start", "stop", "seed", "noise_device", "device", "precision", "captions_sha256", "teacher_sha256"),
    *("generator_sha256", "settings_sha256", "nfe", "sampler", "images_per_s", "samples"),
)
MAY_LACK = {"patches"}  # NaN where an image is smaller than the crop
MOST_REPEATED = 0.01  # COCO has a few images twice; a reference that repeats itself more holds copies of a folder


def build_reference(settings: "BuildReferenceSettings", out: Path, workers: int = 1, code: str = "") -> None:
    """Write features of the reference images to `out` (.safetensors) with a sidecar.

    Tensors: index (N,), features (N, D), clip_image (N, E), and dinov2 (N, F) if `evaluate.dinov2` is set. `workers` threads
    read and prepare images. Features of reference files are cached for all experiments of the same code digest, `code`.

    Raises:
        UserError: too few images, too many duplicates, a damaged image, or one of a size that the feature network does not take.
    """
    if settings.reference_samples < 2:
        raise UserError(f"evaluate.reference_samples={settings.reference_samples}: expected 2, better thousands")
    images = reference_images(settings)
    extractor = FeatureExtractor(settings, len(images), of_reference=True)
    source = images.record()  # reads every file of a folder
    cached = cached_features(source, image_record(settings), extractor.record, code)
    if cached is not None:
        with suppress(UserError):  # it is missing, or damaged
            record = verify_sidecar(cached)["record"]
            with atomic_path(out) as temporary:
                shutil.copyfile(cached, temporary)
            write_sidecar(out, record)
            return
    tensors, record = _reference_features(settings, extractor, images, workers)
    for path in filter(None, (cached, out)):
        _save(path, tensors, source | record)


def _reference_features(
    settings: "BuildReferenceSettings", extractor: "FeatureExtractor", images: "ReferenceImages", workers: int
) -> tuple[dict[str, Tensor], dict]:
    """Compute the tensors of the reference images and their record."""

    def prepare(index: int) -> tuple[str, tuple]:
        image = images.read(index)
        return pixel_sha256(image), extractor.prepare(image)

    progress, hashes = Progress("reference", len(images)), []
    for batch in batches(in_order(prepare, range(len(images)), workers, 2 * settings.batch), settings.batch):
        hashes += [sha256 for sha256, _ in batch]
        extractor.add([prepared for _, prepared in batch], [""] * len(batch))
        progress.update(len(hashes))
    twice = len(hashes) - len(set(hashes))
    if twice > MOST_REPEATED * len(hashes):
        raise UserError(
            f"evaluate.reference={settings.reference}: expected different images, {twice} of {len(hashes)} are repeated. "
            "Fix: remove the copies"
        )
    tensors = extractor.tensors(torch.arange(len(hashes)), f"evaluate.reference={settings.reference}")
    return tensors, extractor.record | {
        "images_sha256": digest(hashes),
        "repeated": twice,
        "images": image_record(settings),
        "versions": versions(),
    }


def extract_features(settings: "FeatureSettings", shard: Path, captions: Path, out: Path, workers: int = 1) -> None:
    """Write features and CLIP embeddings of a shard's samples to `out` (.safetensors) with a sidecar.

    `workers` threads decode, check and resize images beside the networks.

    Raises:
        UserError: the shard is damaged, was made from other captions, or its images were stored at another size.
    """
    lines = read_lines(captions, "caption")
    sidecar = verify_sidecar(shard)
    made = sidecar["record"]
    check_captions(shard, made, lines)
    # LANCZOS leaves images of the protocol's size unchanged
    if made["image_size"] not in (None, settings.image_size):
        raise UserError(
            f"{shard}: stored at {made['image_size']} x {made['image_size']}, expected evaluate.image_size="
            f"{settings.image_size} or images as decoded. Fix: generate it again"
        )
    extractor = FeatureExtractor(settings, len(made["samples"]))

    def prepare(member: tuple[dict, bytes]) -> tuple[int, tuple]:
        return member[0]["index"], extractor.prepare(decode_member(shard, member))

    progress, index = Progress(f"features of {shard.name}", len(made["samples"])), []
    prepared = in_order(prepare, read_members(shard, made["samples"]), workers, 2 * settings.batch)
    for batch in batches(prepared, settings.batch):
        extractor.add([images for _, images in batch], [lines[i] for i, _ in batch])
        index += [i for i, _ in batch]
        progress.update(len(index))
    tensors = extractor.tensors(torch.tensor(index), str(shard))
    tensors["clip_text"] = extractor.clip.texts([settings.caption_prefix + lines[i] for i in index])
    check_finite(tensors["clip_text"], tensors["index"], f"{shard}: clip_text")
    record = {
        "samples_sha256": sidecar["sha256"],
        **extractor.record,
        "images": image_record(settings),
        "caption_prefix": settings.caption_prefix,
        "versions": versions(),
    }
    _save(out, tensors, record | {key: made[key] for key in CARRIED})


class FeatureExtractor:
    """Run all networks of the settings on `count` images and accumulate one row an image for each network.

    Preferences are not run with `of_reference`: they need captions.
    """

    def __init__(self, settings: "FeatureSettings", count: int, of_reference: bool = False):
        features, self.clip, optional = Features(settings), Clip(settings), optional_networks(settings)
        if of_reference:
            optional = [network for network in optional if not isinstance(network, Preference)]
        if settings.patches:
            optional.append(Patches(features))
        self._settings, self._networks = settings, [features, self.clip, *optional]
        self.record = {
            "weights": {"features": features.identity, "clip": self.clip.identity},
            "extras": {network.column: network.record for network in optional},
        }
        # one block for all images: small tensors that stay between large temporary ones fragment the heap
        self._rows: dict[str, Tensor] = {}
        self._count, self._done = count, 0

    def prepare(self, image: np.ndarray) -> tuple:
        """Return an 8-bit image preprocessed for each network; this may be called from several threads."""
        seen = stored(image, self._settings)
        return tuple(network.prepare(image if network.column == "patches" else seen) for network in self._networks)

    def add(self, batch: Sequence[tuple], captions: Sequence[str]) -> None:
        """Run the networks on the outputs of `prepare` for each image of a batch."""
        for network, prepared in zip(self._networks, zip(*batch, strict=True), strict=True):
            new = network.rows(prepared, captions)
            if network.column not in self._rows:
                self._rows[network.column] = new.new_empty(self._count, *new.shape[1:])
            self._rows[network.column][self._done : self._done + len(batch)] = new
        self._done += len(batch)

    def tensors(self, index: Tensor, source: str) -> dict[str, Tensor]:
        """Return the rows of all images by network, with their index (N,); a UserError names those not finite."""
        for name, values in self._rows.items():
            if name not in MAY_LACK:
                check_finite(values, index, f"{source}: {name}")
        return {"index": index, **self._rows}


def load_features(path: Path) -> tuple[dict[str, Tensor], dict]:
    """Load tensors and record of a features file; a UserError names a missing or damaged one, or values not finite."""
    record = verify_sidecar(path)["record"]
    tensors = load_file(path)
    for name, rows in tensors.items():
        if name not in {"index"} | MAY_LACK:
            check_finite(rows, tensors["index"], f"{path}: {name}")
    return tensors, record


def check_finite(features: Tensor, index: Tensor, source: str) -> None:
    """Raise a UserError that names samples with NaN or infinity: one would make every metric NaN."""
    bad = index[~features.reshape(len(features), -1).isfinite().all(1)]
    if len(bad):
        raise UserError(f"{source}: features of samples {ranges(bad.tolist())} are not finite. Fix: extract again")


def reference_record(path: Path, made: dict, settings: "FeatureSettings") -> dict:
    """Return the part of the protocol that describes the reference images, for the record `made` of a shard.

    Raises:
        UserError: the reference is damaged, or was encoded by other networks or at another size than the samples.
    """
    record = verify_sidecar(path)["record"]
    expected = {"weights": made["weights"], "images": image_record(settings)}
    apart = any(record[key] != value for key, value in expected.items())
    if apart or any(made["extras"].get(key) != extra for key, extra in record["extras"].items()):
        what = "another feature network, CLIP, DINOv2 or image size than the samples"
        raise UserError(f"{path}: made with {what}. Fix: build the reference again")
    return {key: record[key] for key in ("source", "count", "images_sha256")}


def check_captions(path: Path, made: dict, lines: list[str]) -> None:
    """Raise a UserError if the record `made` of samples, or of their features, has other captions than `lines`."""
    if captions_sha256(lines[made["start"] : made["stop"]]) != made["captions_sha256"]:
        raise UserError(
            f"{path}: made from other captions than lines {made['start'] + 1}–{made['stop']} of the caption file. "
            "Fix: generate it again"
        )


def stored(image: np.ndarray, settings: "FeatureSettings") -> np.ndarray:
    """Return the 8-bit image that all networks start from."""
    return shrink(image, settings.image_size) if settings.image_size else image


def _save(out: Path, tensors: dict[str, Tensor], record: dict) -> None:
    with atomic_path(out) as temporary:
        save_file(tensors, temporary)
    write_sidecar(out, record)

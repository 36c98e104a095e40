"""Write samples of a generator or of a baseline into shards.

Sample i has caption i and noise from its own seed, and is evaluated inside a fixed block (inputs.py): images depend
neither on batch nor on shard, and a shard made again has equal bytes. Threads encode and hash images while the
networks compute; the queue holds one batch, so memory does not grow with a shard.
"""

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ..config import SEEDS, settings_digest
from ..data.images import encode_png, pixel_sha256, quantise, shrink
from ..data.pool import in_order
from ..data.shards import captions_sha256, ranges, write_shard
from ..errors import UserError
from ..method import n_step
from ..models.backbones import Backbone
from ..models.conditioning import Conditioning
from ..models.devices import place
from ..models.generator import generator_sha256, load_generator, recorded_steps
from ..models.teacher import load_solver
from ..storage.progress import Progress
from ..storage.versions import versions
from .inputs import NOISE_DEVICE, Inputs

if TYPE_CHECKING:
    from ..config import BaselineSettings, GenerateSettings, Sampling

EPS_ERROR_SAMPLES = 1000  # the first ones, whose epsilon-prediction error by the teacher is recorded
PNG_LEVEL = 1  # of 0 to 9: higher levels take longer and save little disk


@dataclass(frozen=True)
class Sampler:
    """Two steps that make samples; only the second is timed.

    Args:
        start: maps indices (B,) to noises (B, n, C, h, w), or to real images (B, 3, H, W) in [-1, 1].
        networks: maps indices and the result of `start` to images (B, 3, H, W) in [-1, 1] and their scaled latents
            (B, C, h, w). None: the images of `start` are the samples, and there is no throughput.
    """

    start: Callable[[Tensor], Tensor]
    networks: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None


@dataclass(frozen=True)
class Sample:
    """A decoded image (H, W, 3) uint8 with its epsilon-prediction error, None where it is not measured."""

    index: int
    image: np.ndarray
    eps_error: float | None


@dataclass(frozen=True)
class PackedSample:
    """A sample as PNG, with the sha256 of its pixels."""

    index: int
    png: bytes
    sha256: str
    eps_error: float | None


def generate_run(
    settings: "GenerateSettings",
    generator: Path,
    teacher: Path,
    captions: Path,
    start: int,
    stop: int,
    out: Path,
    workers: int = 1,
    embeddings: Path | None = None,
) -> None:
    """Write samples [start, stop) of a distilled generator to the shard `out` (.tar).

    Args:
        workers: threads that encode and hash images.
        embeddings: folder of `evaluation` by `embed_prompts`; None: the text encoder is loaded.

    Raises:
        UserError: too few captions, an input that differs from its manifest, a generator distilled with other
            settings, non-finite images.
    """
    network, record = load_generator(generator, teacher)
    steps = recorded_steps(record)
    for key, found in (("t_init", steps.t_init), ("num_steps", steps.count), ("step_noise", steps.noise)):
        if found != getattr(settings, key):
            raise UserError(
                f"{generator}: {key}={found}: expected {getattr(settings, key)}, as in the settings. Fix: distil it again"
            )
    inputs = Inputs(settings.sampling, teacher, captions, embeddings)
    network = place(network, settings.sampling.precision)

    def latents(noises: Tensor, cond: Conditioning) -> Tensor:
        return n_step(network, noises.unbind(1), steps, cond)

    def networks(indices: Tensor, noises: Tensor) -> tuple[Tensor, Tensor]:
        x_g = inputs.by_block(latents, noises, inputs.prompts(indices))
        return inputs.by_block(inputs.codec.decode, x_g), x_g

    sampler = Sampler(lambda indices: inputs.noises(indices, steps.noises), networks)
    identity = {"settings_sha256": settings_digest(settings), "generator_sha256": generator_sha256(generator)}
    how = {"t_init": settings.t_init, "num_steps": settings.num_steps}
    if settings.num_steps > 1:
        how["step_noise"] = settings.step_noise
    _write(inputs, sampler, start, stop, out, identity | {"nfe": settings.num_steps, "sampler": how}, workers)


def generate_baseline(
    settings: "BaselineSettings",
    teacher: Path,
    captions: Path,
    start: int,
    stop: int,
    out: Path,
    workers: int = 1,
    embeddings: Path | None = None,
) -> None:
    """Write samples [start, stop) of a baseline to the shard `out` (.tar): teacher, VAE round trip, or real images.

    Raises:
        UserError: as generate_run; captions that differ from those of the real images.
    """
    baseline = settings.baseline
    inputs = Inputs(settings.sampling, teacher, captions, embeddings)
    makers = {"teacher": _teacher_sampler, "vae": _vae_sampler, "real": _real_sampler}
    identity = {"settings_sha256": settings_digest(settings), "generator_sha256": None}
    how = {key: getattr(baseline, key) for key in ("solver", "steps", "guidance_scale")} if baseline.steps else None
    identity |= {"nfe": baseline.nfe, "sampler": how}
    _write(inputs, makers[baseline.kind](settings, inputs, teacher), start, stop, out, identity, workers)


def _teacher_sampler(settings: "BaselineSettings", inputs: Inputs, teacher: Path) -> Sampler:
    baseline = settings.baseline
    solver = load_solver(baseline.solver, teacher, baseline.steps)

    def latents(noises: Tensor, cond: Conditioning) -> Tensor:
        # at every block: a multistep solver would otherwise use the history of the previous block
        solver.set_timesteps(baseline.steps, device=inputs.device)
        return solve(solver, inputs.teacher, noises[:, 0], cond, inputs.empty_prompt, baseline.guidance_scale)

    def networks(indices: Tensor, noises: Tensor) -> tuple[Tensor, Tensor]:
        x_0 = inputs.by_block(latents, noises, inputs.prompts(indices))
        return inputs.by_block(inputs.codec.decode, x_0), x_0

    return Sampler(lambda indices: inputs.noises(indices, 1), networks)


def _vae_sampler(settings: "BaselineSettings", inputs: Inputs, teacher: Path) -> Sampler:
    def networks(indices: Tensor, images: Tensor) -> tuple[Tensor, Tensor]:
        x_0 = inputs.by_block(inputs.codec.encode, images)
        return inputs.by_block(inputs.codec.decode, x_0), x_0

    return Sampler(partial(inputs.real_images, settings.split), networks)


def _real_sampler(settings: "BaselineSettings", inputs: Inputs, teacher: Path) -> Sampler:
    return Sampler(partial(inputs.real_images, settings.split), None)


def solve(
    solver, teacher: Backbone, noise: Tensor, cond: Conditioning, uncond: Conditioning, guidance_scale: float
) -> Tensor:
    """Return latents (B, C, h, w) from noise of that shape, by a solver that steps with x_0 and has its timesteps set."""
    x_t = noise * solver.init_noise_sigma
    for step in solver.timesteps:
        x0_hat = teacher(solver.scale_model_input(x_t, step), step.expand(len(x_t)), cond, uncond, guidance_scale)
        x_t = solver.step(x0_hat, step, x_t).prev_sample
    return x_t


def _write(inputs: Inputs, sampler: Sampler, start: int, stop: int, out: Path, identity: dict, workers: int) -> None:
    """Sample [start, stop) and write shard and sidecar."""
    sampling, captions = inputs.sampling, inputs.captions
    if not 0 <= start < stop <= len(captions):
        raise UserError(
            f"samples {start}–{stop - 1}: expected a range inside the {len(captions)} captions. "
            "Fix: give more captions or fewer samples"
        )
    if inputs.seed(stop) > SEEDS:
        raise UserError(
            f"generate.seed={sampling.seed}: expected seed + samples up to 2^32. Fix: choose a smaller seed"
        )
    record = {
        "start": start, "stop": stop, "seed": sampling.seed, "noise_device": NOISE_DEVICE, "device": inputs.device,
        "precision": sampling.precision, "image_size": sampling.image_size,
        "captions_sha256": captions_sha256(captions[start:stop]), "teacher_sha256": inputs.teacher_sha256,
        **identity, "versions": versions(), "images_per_s": None, "samples": [],
    }  # fmt: skip
    samples = _samples(inputs, sampler, start, stop, record)
    packed = in_order(partial(_pack, sampling), samples, workers, ahead=inputs.batch)
    write_shard(out, _record_samples(packed, record, inputs.seed, Progress(out.stem, stop - start)), record)


@torch.inference_mode()
def _samples(inputs: Inputs, sampler: Sampler, start: int, stop: int, record: dict) -> Iterator[Sample]:
    """Yield samples [start, stop), and record the networks' throughput as `images_per_s` in `record`."""
    elapsed_s, computed = 0.0, 0
    for indices in inputs.batches(start, stop):
        given = sampler.start(indices)
        began_s = time.perf_counter()
        decoded, latents = sampler.networks(indices, given) if sampler.networks else (given, None)
        # copies to the CPU, which waits for the GPU: the time is whole
        images = quantise(_check_finite(decoded, indices))
        elapsed_s += time.perf_counter() - began_s
        computed += len(indices)
        if sampler.networks:
            record["images_per_s"] = computed / elapsed_s

        errors: list[float | None] = [None] * len(indices)
        if indices[0] < EPS_ERROR_SAMPLES:
            known = inputs.by_block(inputs.codec.encode, decoded) if latents is None else latents
            errors = inputs.eps_errors(known, indices)
        for index, image, error in zip(indices.tolist(), images, errors, strict=True):
            if start <= index < stop:
                yield Sample(index, image, error if index < EPS_ERROR_SAMPLES else None)


def _pack(sampling: "Sampling", sample: Sample) -> PackedSample:
    """Encode a sample as PNG; its hash is that of the stored pixels."""
    image = shrink(sample.image, sampling.image_size) if sampling.image_size else sample.image
    return PackedSample(sample.index, encode_png(image, PNG_LEVEL), pixel_sha256(image), sample.eps_error)


def _record_samples(
    packed: Iterable[PackedSample], record: dict, seed: Callable[[int], int], progress: Progress
) -> Iterator[tuple[int, bytes]]:
    """Yield index and PNG of every sample, and append its entry to `record`."""
    for sample in packed:
        entry = {"index": sample.index, "seed": seed(sample.index), "sha256": sample.sha256}
        record["samples"].append(entry | {"eps_error": sample.eps_error})
        progress.update(len(record["samples"]))
        yield sample.index, sample.png


def _check_finite(images: Tensor, indices: Tensor) -> Tensor:
    bad = indices[~images.isfinite().flatten(1).all(1)].tolist()
    if bad:
        raise UserError(
            f"samples {ranges(bad)}: expected finite values, but the network has diverged. Fix: train it with a lower lr"
        )
    return images

"""Write samples of a generator or of a baseline into shards.

Sample i has caption i and noise from its own seed, and is evaluated inside a fixed block (inputs.py): images depend
neither on batch nor on shard, and a shard made again has equal bytes. Threads encode and hash images while the
networks compute; the queue holds one batch, so memory does not grow with a shard.
"""

import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

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
    from ..config import BaselineSettings, GenerateSettings

EPS_ERROR_SAMPLES = 1000  # the first ones, whose epsilon-prediction error by the teacher is recorded
PNG_LEVEL = 1  # of 0 to 9: higher levels take longer and save little disk


class Sampler(NamedTuple):
    """Two steps that make samples; only the second is timed.

    Args:
        start: maps indices (B,) to noises (B, n, C, h, w), or to real images (B, 3, H, W) in [-1, 1].
        networks: maps indices and the result of `start` to images (B, 3, H, W) in [-1, 1] and their scaled latents
            (B, C, h, w). None: the images of `start` are the samples, and there is no throughput.
    """

    start: Callable[[Tensor], Tensor]
    networks: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None


class Sample(NamedTuple):
    """A decoded image (H, W, 3) uint8 with its epsilon-prediction error, None where it is not measured."""

    index: int
    image: np.ndarray
    eps_error: float | None


def generate(
    settings: "GenerateSettings | BaselineSettings",
    generator: Path | None,
    teacher: Path,
    captions: Path,
    start: int,
    stop: int,
    out: Path,
    workers: int = 1,
    embeddings: Path | None = None,
) -> None:
    """Write samples [start, stop) of a generator to the shard `out` (.tar), or without one those of a baseline.

    Args:
        workers: threads that encode and hash images.
        embeddings: folder of `evaluation` by `embed_prompts`; None: the text encoder is loaded.

    Raises:
        UserError: too few captions, an input that differs from its manifest, a generator distilled with other settings,
            captions that differ from those of the real images, non-finite images.
    """
    inputs = Inputs(settings.sampling, teacher, captions, embeddings)
    if generator:
        sampler, nfe = _generator_sampler(settings, inputs, teacher, generator), settings.num_steps
        keys, made = ["t_init", "num_steps", *["step_noise"] * (nfe > 1)], settings
    else:
        made = settings.baseline
        sampler, nfe = BASELINES[made.kind](settings, inputs, teacher), made.nfe
        keys = ["solver", "steps", "guidance_scale"] if made.steps else []
    if not 0 <= start < stop <= len(inputs.captions):
        raise UserError(
            f"samples {start}–{stop - 1}: expected a range inside the {len(inputs.captions)} captions. "
            "Fix: give more captions or fewer samples"
        )
    sampling = settings.sampling
    if inputs.seed(stop) > SEEDS:
        raise UserError(f"generate.seed={sampling.seed}: expected seed + samples up to 2^32. Fix: choose a smaller one")
    record = {
        "start": start, "stop": stop, "seed": sampling.seed, "noise_device": NOISE_DEVICE, "device": inputs.device,
        "precision": sampling.precision, "image_size": sampling.image_size,
        "captions_sha256": captions_sha256(inputs.captions[start:stop]), "teacher_sha256": inputs.teacher_sha256,
        "settings_sha256": settings_digest(settings), "generator_sha256": generator and generator_sha256(generator),
        "nfe": nfe, "sampler": {key: getattr(made, key) for key in keys} or None,
        "versions": versions(), "images_per_s": None, "samples": [],
    }  # fmt: skip
    samples = _samples(inputs, sampler, start, stop, record)
    packed = in_order(partial(_pack, inputs), samples, workers, ahead=inputs.batch)
    write_shard(out, _record_samples(packed, record, Progress(out.stem, stop - start)), record)


def _generator_sampler(settings: "GenerateSettings", inputs: Inputs, teacher: Path, generator: Path) -> Sampler:
    network, record = load_generator(generator, teacher)
    steps = recorded_steps(record)
    for key, found in (("t_init", steps.t_init), ("num_steps", steps.count), ("step_noise", steps.noise)):
        if found != getattr(settings, key):
            expected = f"expected {getattr(settings, key)}, as in the settings"
            raise UserError(f"{generator}: {key}={found}: {expected}. Fix: distil it again")
    network = place(network, settings.sampling.precision)
    return _from_noise(inputs, lambda noises, cond: n_step(network, noises.unbind(1), steps, cond), steps.noises)


def _teacher_sampler(settings: "BaselineSettings", inputs: Inputs, teacher: Path) -> Sampler:
    baseline = settings.baseline
    solver = load_solver(baseline.solver, teacher, baseline.steps)

    def latents(noises: Tensor, cond: Conditioning) -> Tensor:
        # at every block: a multistep solver would otherwise use the history of the previous block
        solver.set_timesteps(baseline.steps, device=inputs.device)
        return solve(solver, inputs.teacher, noises[:, 0], cond, inputs.empty_prompt, baseline.guidance_scale)

    return _from_noise(inputs, latents, 1)


def _from_noise(inputs: Inputs, latents: Callable[[Tensor, Conditioning], Tensor], count: int) -> Sampler:
    """Return a Sampler that decodes the latents of `count` noises an image and embeddings."""

    def networks(indices: Tensor, noises: Tensor) -> tuple[Tensor, Tensor]:
        x_0 = inputs.by_block(latents, noises, inputs.prompts(indices))
        return inputs.by_block(inputs.codec.decode, x_0), x_0

    return Sampler(lambda indices: inputs.noises(indices, count), networks)


def _vae_sampler(settings: "BaselineSettings", inputs: Inputs, teacher: Path) -> Sampler:
    def networks(indices: Tensor, images: Tensor) -> tuple[Tensor, Tensor]:
        x_0 = inputs.by_block(inputs.codec.encode, images)
        return inputs.by_block(inputs.codec.decode, x_0), x_0

    return Sampler(partial(inputs.real_images, settings.split), networks)


def _real_sampler(settings: "BaselineSettings", inputs: Inputs, teacher: Path) -> Sampler:
    return Sampler(partial(inputs.real_images, settings.split), None)


BASELINES = {"teacher": _teacher_sampler, "vae": _vae_sampler, "real": _real_sampler}


def solve(
    solver, teacher: Backbone, noise: Tensor, cond: Conditioning, uncond: Conditioning, guidance_scale: float
) -> Tensor:
    """Return latents (B, C, h, w) from noise of that shape, by a solver that steps with x_0 and has its timesteps set."""
    x_t = noise * solver.init_noise_sigma
    for step in solver.timesteps:
        x0_hat = teacher(solver.scale_model_input(x_t, step), step.expand(len(x_t)), cond, uncond, guidance_scale)
        x_t = solver.step(x0_hat, step, x_t).prev_sample
    return x_t


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


def _pack(inputs: Inputs, sample: Sample) -> tuple[dict, bytes]:
    """Return a sample's entry in the record, with the hash of its stored pixels, and its PNG."""
    side = inputs.sampling.image_size
    image = shrink(sample.image, side) if side else sample.image
    entry = {"index": sample.index, "seed": inputs.seed(sample.index), "sha256": pixel_sha256(image)}
    return entry | {"eps_error": sample.eps_error}, encode_png(image, PNG_LEVEL)


def _record_samples(
    packed: Iterable[tuple[dict, bytes]], record: dict, progress: Progress
) -> Iterator[tuple[int, bytes]]:
    """Yield index and PNG of every sample, and append its entry to `record`."""
    for entry, png in packed:
        record["samples"].append(entry)
        progress.update(len(record["samples"]))
        yield entry["index"], png


def _check_finite(images: Tensor, indices: Tensor) -> Tensor:
    bad = indices[~images.isfinite().flatten(1).all(1)].tolist()
    if bad:
        raise UserError(f"samples {ranges(bad)}: expected finite values, it diverged. Fix: train it at a lower lr")
    return images

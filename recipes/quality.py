"""Measure the trained networks on the validation split, for the record of the recipe."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch

from sid_core.config import FeatureSettings
from sid_core.data.images import dequantise, quantise
from sid_core.data.shapes.scenes import draw
from sid_core.evaluation.metrics.frechet import Gaussian, Reference
from sid_core.evaluation.metrics.samples import clip_score
from sid_core.evaluation.networks.required import Clip, Features
from sid_core.models.conditioning import Conditioning
from sid_core.models.teacher import load_backbone, load_image_codec, load_solver, load_text_encoder
from sid_core.models.vae import ImageCodec
from sid_core.sampling.generation import solve

from .common import Progress
from .settings import QualitySettings

BATCH = 128


def measure_flow(settings: QualitySettings, seed: int, folder: Path) -> dict:
    """Return the same of the teacher by flow matching, "flow-cfg-SCALE"."""
    found = measure(settings, seed, folder, "flow", "dpm-solver")
    return {name: scores for name, scores in found.items() if name.startswith("flow")}


@torch.no_grad()
def measure(settings: QualitySettings, seed: int, folder: Path, teacher: str = "teacher", solver: str = "ddim") -> dict:
    """Return {name: {"fid", "clip"}}: Frechet distances to reference images and CLIP scores.

    Names are "real", "vae" (real images, encoded and decoded) and "TEACHER-cfg-SCALE".
    """
    evaluated = FeatureSettings(feature_network=str(folder / "features"), clip=str(folder / "clip"), batch=BATCH)
    network, clip = Features(evaluated), Clip(evaluated)
    codec, encoder = load_image_codec(folder / teacher), load_text_encoder(folder / teacher)
    images, texts = draw("validation", settings.samples)
    embeddings = clip.texts(texts)

    def fit(images: np.ndarray) -> Gaussian:
        return Gaussian.fit(torch.cat([network.rows(batch) for batch in _batches(images)]))

    reference = Reference(fit(draw("reference", settings.reference)[0]))

    def scores(images: np.ndarray) -> dict[str, float]:
        encoded = torch.cat([clip.images(batch) for batch in _batches(images)])
        clip_value = clip_score(encoded, embeddings, resamples=2).value
        return {"fid": round(reference.distance(fit(images)), 3), "clip": round(clip_value, 4)}

    decoded = [quantise(codec.decode(codec.encode(dequantise(batch)))) for batch in _batches(images)]
    table = {"real": scores(images), "vae": scores(np.concatenate(decoded))}
    prompts = encoder.encode(texts)
    for scale in settings.guidance_scales:
        solvers = partial(load_solver, solver, folder / teacher, settings.sampling_steps)
        sampled = sample(folder / teacher, solvers, codec, prompts, encoder.empty(), scale, seed)
        table[f"{teacher}-cfg-{scale:g}"] = scores(sampled)
    return table


@torch.no_grad()
def sample(
    teacher: Path,
    new_solver: Callable,
    codec: ImageCodec,
    prompts: Conditioning,
    empty: Conditioning,
    scale: float,
    seed: int,
) -> np.ndarray:
    """Sample the teacher, (n, H, W, 3) uint8, for n prompts."""
    backbone = load_backbone(teacher)
    config = backbone.network.config
    generator = torch.Generator().manual_seed(seed)
    images: list[np.ndarray] = []
    progress = Progress(f"teacher at guidance {scale:g}: samples", len(prompts))
    for cond in prompts.split(BATCH):
        noise = torch.randn(len(cond), config.in_channels, *[config.sample_size] * 2, generator=generator)
        latents = solve(new_solver(), backbone, noise, cond, empty, scale)
        images.append(quantise(codec.decode(latents)))
        progress.update(sum(map(len, images)))
    return np.concatenate(images)


def _batches(images: np.ndarray) -> list[np.ndarray]:
    return [images[start : start + BATCH] for start in range(0, len(images), BATCH)]

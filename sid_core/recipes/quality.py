"""What the parts are worth, on the validation split: recorded beside them. (The experiment's scores are evaluation's.)"""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..config import FeatureSettings
from ..data.images import dequantise, quantise
from ..data.shapes.scenes import draw
from ..evaluation.metrics.frechet import Gaussian, Reference
from ..evaluation.metrics.samples import clip_score
from ..evaluation.networks.required import Clip, Features
from ..models.conditioning import Conditioning
from ..models.teacher import load_backbone, load_image_codec, load_solver, load_text_encoder
from ..models.vae import ImageCodec
from ..sampling.generation import solve
from .common import Progress
from .settings import QualitySettings

BATCH = 128


@torch.no_grad()
def measure(settings: QualitySettings, seed: int, folder: Path) -> dict:
    """Frechet distances to reference pictures and CLIP scores of real, encoded-and-decoded, and teacher's pictures.

    Returns:
        {name: {"fid", "clip"}}; names "real", "vae" and "teacher-cfg-SCALE".
    """
    evaluated = FeatureSettings(feature_network=str(folder / "features"), clip=str(folder / "clip"), batch=BATCH)
    network, clip = Features(evaluated), Clip(evaluated)
    codec, encoder = load_image_codec(folder / "teacher"), load_text_encoder(folder / "teacher")
    images, texts = draw("validation", settings.samples)
    embeddings = clip.texts(texts)

    def features(pictures: np.ndarray) -> Tensor:
        return torch.cat([network.rows(part) for part in _parts(pictures)])

    reference = Reference(Gaussian.fit(features(draw("reference", settings.reference)[0])))

    def scores(pictures: np.ndarray) -> dict[str, float]:
        seen = torch.cat([clip.images(part) for part in _parts(pictures)])
        distance = reference.distance(Gaussian.fit(features(pictures)))
        return {"fid": round(distance, 3), "clip": round(clip_score(seen, embeddings, resamples=2).value, 4)}

    decoded = [quantise(codec.decode(codec.encode(dequantise(part)))) for part in _parts(images)]
    table = {"real": scores(images), "vae": scores(np.concatenate(decoded))}
    prompts = encoder.encode(texts)
    for scale in settings.guidance_scales:
        sampled = sample(folder / "teacher", codec, prompts, encoder.empty(), scale, settings.sampling_steps, seed)
        table[f"teacher-cfg-{scale:g}"] = scores(sampled)
    return table


@torch.no_grad()
def sample(
    teacher: Path, codec: ImageCodec, prompts: Conditioning, empty: Conditioning, scale: float, steps: int, seed: int
) -> np.ndarray:
    """The teacher's DDIM samples of n prompts, (n, H, W, 3) uint8."""
    backbone = load_backbone(teacher)
    config = backbone.network.config
    generator = torch.Generator().manual_seed(seed)
    pictures: list[np.ndarray] = []
    progress = Progress(f"teacher at guidance {scale:g}: samples", len(prompts))
    for cond in prompts.split(BATCH):
        noise = torch.randn(len(cond), config.in_channels, *[config.sample_size] * 2, generator=generator)
        latents = solve(load_solver("ddim", teacher, steps), backbone, noise, cond, empty, scale)
        pictures.append(quantise(codec.decode(latents)))
        progress.update(sum(map(len, pictures)))
    return np.concatenate(pictures)


def _parts(pictures: np.ndarray) -> list[np.ndarray]:
    return [pictures[i : i + BATCH] for i in range(0, len(pictures), BATCH)]

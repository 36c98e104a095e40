"""What the parts are worth, on the validation split: recorded beside them. (The experiment's scores are evaluation's.)"""

import json
from pathlib import Path

import torch
from open_clip import create_model_and_transforms, get_tokenizer
from torch import Tensor

from ...models.feature_network import FeatureNetwork
from ...models.teacher import load_denoiser, make_solver
from ...models.text import TextEncoder
from ...models.vae import ImageCodec
from ..scenes import draw_with_scenes
from .common import Progress, to_signed
from .settings import QualitySettings

BATCH = 128


@torch.no_grad()
def measure(settings: QualitySettings, seed: int, folder: Path) -> dict:
    """Frechet distances to reference pictures and CLIP scores of real, encoded-and-decoded, and teacher's pictures.

    Returns:
        {name: {"fid", "clip"}}; names "real", "vae" and "teacher-cfg-SCALE".
    """
    network = FeatureNetwork.from_directory(folder / "features")
    codec, encoder = ImageCodec.from_directory(folder / "teacher"), TextEncoder.from_directory(folder / "teacher")
    clip = create_model_and_transforms(f"local-dir:{folder / 'clip'}", require_pretrained=True)[0].eval()
    images, texts, _ = draw_with_scenes("validation", settings.samples)
    text_features = clip.encode_text(get_tokenizer(f"local-dir:{folder / 'clip'}")(texts), normalize=True)
    preprocess = json.loads((folder / "clip" / "open_clip_config.json").read_text(encoding="utf-8"))["preprocess_cfg"]
    mean, std = preprocess["mean"][0], preprocess["std"][0]

    def features(pictures: Tensor) -> Tensor:
        return torch.cat([network(part) for part in pictures.split(BATCH)])

    reference = features(draw_with_scenes("reference", settings.reference)[0])

    def scores(pictures: Tensor) -> dict[str, float]:
        parts = pictures.split(BATCH)
        seen = torch.cat([clip.encode_image((part / 255 - mean) / std, normalize=True) for part in parts])
        distance = frechet_distance(features(pictures), reference)
        return {"fid": round(distance, 3), "clip": round((seen * text_features).sum(dim=1).mean().item(), 4)}

    decoded = [quantise(codec.decode(codec.encode(to_signed(part)))) for part in images.split(BATCH)]
    table = {"real": scores(images), "vae": scores(torch.cat(decoded))}
    prompts = encoder.encode(texts)
    for scale in settings.guidance_scales:
        sampled = sample(folder / "teacher", codec, prompts, encoder.empty(), scale, settings.sampling_steps, seed)
        table[f"teacher-cfg-{scale:g}"] = scores(sampled)
    return table


def sample(
    teacher: Path, codec: ImageCodec, prompts: Tensor, empty: Tensor, scale: float, steps: int, seed: int
) -> Tensor:
    """The teacher's DDIM samples, (n, 3, H, W) uint8; prompts (n, L, D), empty (1, L, D)."""
    unet = load_denoiser(teacher).unet
    generator = torch.Generator().manual_seed(seed)
    pictures: list[Tensor] = []
    progress = Progress(f"teacher at guidance {scale:g}: samples", len(prompts))
    for cond in prompts.split(BATCH):
        solver = make_solver("ddim", teacher, steps)
        x = torch.randn(len(cond), unet.config.in_channels, *[unet.config.sample_size] * 2, generator=generator)
        both = torch.cat([empty.expand_as(cond), cond])
        for t in solver.timesteps:
            if scale == 1:
                eps = unet(x, t, cond).sample
            else:
                eps_empty, eps_cond = unet(torch.cat([x, x]), t, both).sample.chunk(2)
                eps = eps_empty + scale * (eps_cond - eps_empty)
            x = solver.step(eps, t, x).prev_sample
        pictures.append(quantise(codec.decode(x)))
        progress.update(sum(map(len, pictures)))
    return torch.cat(pictures)


def quantise(images: Tensor) -> Tensor:
    """Decoded images to uint8 as the protocol does it: (x * 127.5 + 128) clipped, truncated."""
    return (images * 127.5 + 128).clamp(0, 255).to(torch.uint8)


def frechet_distance(first: Tensor, second: Tensor) -> float:
    """Frechet distance of two sets of features (n, D), float64, covariances with ddof 1."""
    (mu_1, cov_1), (mu_2, cov_2) = ((f.double().mean(0), torch.cov(f.double().T)) for f in (first, second))
    values, vectors = torch.linalg.eigh(cov_1)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T
    cross = torch.linalg.eigvalsh(root @ cov_2 @ root).clamp(min=0).sqrt().sum()
    return ((mu_1 - mu_2).square().sum() + cov_1.trace() + cov_2.trace() - 2 * cross).item()

"""Train the teacher, a text-conditional latent diffusion model, with Stable Diffusion's noise schedule and target."""

from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import mse_loss

from sid_core.data.shapes.captions import all_captions
from sid_core.models.convert.pipeline import write_model_index
from sid_core.models.text import TextEncoder
from sid_core.models.vae import ImageCodec

from .common import CHUNK, Progress, Training, batches, to_signed
from .networks import new_scheduler, new_unet
from .settings import TeacherSettings


def train_teacher(settings: TeacherSettings, seed: int, folder: Path) -> None:
    """Train the UNet on the VAE and the text encoder in `teacher`; add its unet, scheduler and model_index.json."""
    folder = folder / "teacher"
    codec, encoder = ImageCodec.from_directory(folder), TextEncoder.from_directory(folder)
    prompts = [*all_captions(), ""]
    embeddings = encoder.encode(prompts).tokens  # (1153, 12, 64)
    mean, std, caption = encode_scenes(codec, settings.scenes, {text: row for row, text in enumerate(prompts)})

    torch.manual_seed(seed)
    latent_channels, latent_size = mean.shape[1:3]
    unet = new_unet(settings.channels, latent_channels, latent_size, embeddings.shape[2])
    scheduler = new_scheduler()
    training = Training(unet, settings.steps, settings.learning_rate, "teacher")
    for _ in range(settings.steps):
        chosen = torch.randint(len(mean), (settings.batch,))
        x_0 = mean[chosen].float() + std[chosen].float() * torch.randn(settings.batch, *mean.shape[1:])
        dropped = torch.rand(settings.batch) < settings.prompt_dropout
        cond = embeddings[torch.where(dropped, len(prompts) - 1, caption[chosen])]
        eps, t = torch.randn_like(x_0), torch.randint(1000, (settings.batch,))
        training.update(mse_loss(unet(scheduler.add_noise(x_0, eps, t), t, cond).sample, eps))
    training.average.save_pretrained(folder / "unet")
    scheduler.save_pretrained(folder / "scheduler")
    write_model_index(folder, "DDIMScheduler")


@torch.no_grad()
def encode_scenes(codec: ImageCodec, n: int, rows: dict[str, int]) -> tuple[Tensor, Tensor, Tensor]:
    """Return mean and std of the posterior of n training scenes' scaled latents, float16 (n, C, h, w), and caption rows (n,)."""
    means, stds, captions = [], [], []
    progress = Progress("teacher: scenes encoded", n)
    stream = batches(CHUNK)
    scale = codec.vae.config.scaling_factor
    for done in range(0, n, CHUNK):
        images, texts, _ = next(stream)
        for batch in images[: n - done].split(128):  # fits the CPU cache
            posterior = codec.vae.encode(to_signed(batch)).latent_dist
            means.append((posterior.mean * scale).half())
            stds.append((posterior.std * scale).half())
        captions += [rows[text] for text in texts[: n - done]]
        progress.update(len(captions))
    return torch.cat(means), torch.cat(stds), torch.tensor(captions)

"""Time sampling from captions to PNG files and features, extrapolated to 30,000 samples.

    python benchmarks/generation.py --size sd15 --images 1024 --threads 8      # on a GPU: random weights of SD 1.5's shape
    OMP_NUM_THREADS=1 python benchmarks/generation.py --images 1024            # on a CPU: the embedded teacher
    … --feature-network FILE_OR_FOLDER --clip FOLDER                            # features of the samples too

Networks need torch, diffusers and safetensors; text is timed where transformers is installed, features where networks are given.
Stages are timed one by one, then all together as generation runs: threads pack images while the networks make the next.
"""

import argparse
import importlib.util
import json
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel

from sid_core.cluster.machine import device
from sid_core.data.images import encode_png, pixel_sha256, quantise
from sid_core.data.pool import batches, in_order
from sid_core.data.shapes import ASSETS
from sid_core.method import one_step
from sid_core.models.backbones import StableDiffusion
from sid_core.models.conditioning import Conditioning
from sid_core.models.devices import DTYPES, disable_tf32, place
from sid_core.models.scheduler import noise_schedule
from sid_core.models.teacher import latent_shape, load_backbone
from sid_core.models.vae import ImageCodec

SAMPLES = 30_000
T_INIT = 625
CAPTION = "a photo of a red apple on a wooden table, number {}"


def of_sd15_shape() -> tuple[StableDiffusion, ImageCodec, tuple[int, int, int], tuple[int, int]]:
    """Make random weights: generator, VAE, latent shape, and length and width of prompt embeddings."""
    unet = UNet2DConditionModel(sample_size=64, cross_attention_dim=768)
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(128, 256, 512, 512),
        layers_per_block=2,
        sample_size=512,
    )
    schedule = noise_schedule(
        dict(DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False).config)
    )
    return (
        StableDiffusion(unet, schedule, "epsilon").eval().requires_grad_(False),
        ImageCodec(vae),
        (4, 64, 64),
        (77, 768),
    )


def embedded() -> tuple[StableDiffusion, ImageCodec, tuple[int, int, int], tuple[int, int]]:
    """Load the same from the embedded teacher."""
    folder = ASSETS / "teacher"
    denoiser = load_backbone(folder)
    prompt = (16, denoiser.network.config.cross_attention_dim)
    return denoiser, ImageCodec.from_directory(folder), latent_shape(folder), prompt


def text_encoder(size: str, precision: str) -> Callable[[list[str]], Conditioning] | None:
    """Return a function from captions to embeddings by CLIP's text model; None without transformers."""
    if importlib.util.find_spec("transformers") is None:
        return None
    if size == "embedded":
        from sid_core.models.text import TextEncoder

        return place(TextEncoder.from_directory(ASSETS / "teacher"), precision).encode
    from transformers import CLIPTextConfig, CLIPTextModel

    model = CLIPTextModel(
        CLIPTextConfig(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12)
    )
    model = place(model.eval().requires_grad_(False), precision)

    def encode(captions: list[str]) -> Conditioning:
        tokens = torch.full((len(captions), 77), 49407)  # tokenising is the CPU's work and takes microseconds
        tokens[:, 0] = 49406
        return Conditioning(model(tokens.to(model.device)).last_hidden_state.float())

    return encode


def ms_per_image(work: Callable[[], object], images: int, repeats: int = 3) -> float:
    """Return the shortest of `repeats` runs after a warm-up, synchronised with the device."""
    best_s = float("inf")
    for run in range(repeats + 1):
        synchronise()
        began_s = time.perf_counter()
        work()
        synchronise()
        if run:
            best_s = min(best_s, time.perf_counter() - began_s)
    return 1e3 * best_s / images


def synchronise() -> None:
    if device() == "cuda":
        torch.cuda.synchronize()


def peak_gib() -> str:
    if device() == "cuda":
        return f", {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB of GPU memory at most"
    return ""


class Scoring:
    """The networks of features, and the two scores that need no other images."""

    def __init__(self, given: argparse.Namespace, batch: int):
        from sid_core.config import FeatureSettings
        from sid_core.evaluation.networks.required import Clip, Features

        names = ("feature_network", "clip", "feature_size")
        settings = FeatureSettings(batch=batch, **{name: getattr(given, name) for name in names})
        self.given, self.batch, self.network, self.clip = given, batch, Features(settings), Clip(settings)

    def prepare(self, png: bytes) -> tuple[np.ndarray, torch.Tensor]:
        """Read a stored image for both networks."""
        from sid_core.data.images import decode_png, shrink

        image = decode_png(png, "sample")
        pixel_sha256(image)
        stored = shrink(image, self.given.image_size) if self.given.image_size else image
        return self.network.prepare(stored), self.clip.prepare(stored)

    def stages(self, pngs: list[bytes]) -> dict[str, float]:
        """Return milliseconds per image of each stage after sampling."""
        threads = self.given.threads
        run = partial(in_order, self.prepare, pngs, threads, len(pngs))
        seen, for_clip = zip(*run(), strict=True)
        return {
            f"prepare, {threads} threads": ms_per_image(lambda: list(run()), len(pngs)),
            "feature network": ms_per_image(lambda: self.network.rows(seen), len(pngs)),
            "CLIP image": ms_per_image(lambda: self.clip.rows(for_clip), len(pngs)),
        }

    def score(self, pngs: list[bytes]) -> dict[str, float]:
        """Return the FID of one half of the images to the other, the CLIP score, and the seconds that both took."""
        from sid_core.evaluation.metrics.frechet import Gaussian, Reference
        from sid_core.evaluation.metrics.samples import clip_score

        began_s, features, embeddings = time.perf_counter(), [], []
        prepared = in_order(self.prepare, pngs, self.given.threads, self.batch)
        for block in batches(prepared, self.batch):
            seen, for_clip = zip(*block, strict=True)
            features.append(self.network.rows(seen))
            embeddings.append(self.clip.rows(for_clip))
        features_s, x = time.perf_counter() - began_s, torch.cat(features)
        texts = self.clip.texts([CAPTION.format(i) for i in range(len(pngs))])
        half = len(x) // 2
        distance = Reference(Gaussian.fit(x[half:])).distance(Gaussian.fit(x[:half]))
        scores = {"fid_of_halves": distance, "clip": clip_score(torch.cat(embeddings), texts).value}
        return scores | {"features_images_per_s": len(x) / features_s, "seconds": time.perf_counter() - began_s}


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=("embedded", "sd15"), default="embedded")
    parser.add_argument("--images", type=int, default=256, help="made in the run that is extrapolated")
    parser.add_argument("--batch", type=int, help="default: 64 (embedded), 16 (sd15), the blocks of generation")
    parser.add_argument("--precision", choices=DTYPES, help="default: float16 on a GPU, float32 on a CPU")
    parser.add_argument("--vae-slicing", type=int)
    parser.add_argument("--threads", type=int, default=1, help="that pack and prepare images")
    parser.add_argument("--png-level", type=int, default=1)
    parser.add_argument("--feature-network")
    parser.add_argument("--clip")
    parser.add_argument("--image-size", type=int, help="of features, as evaluate.image_size")
    parser.add_argument("--feature-size", type=int, help="of features, as evaluate.feature_size")
    parser.add_argument("--json", type=Path, help="write the result here too")
    given = parser.parse_args()
    batch = given.batch or {"embedded": 64, "sd15": 16}[given.size]
    precision = given.precision or ("float16" if device() == "cuda" else "float32")
    disable_tf32()
    torch.manual_seed(0)
    generator, codec, latent, prompt = of_sd15_shape() if given.size == "sd15" else embedded()
    codec.at_once = given.vae_slicing
    generator, codec, encode = place(generator, precision), place(codec, precision), text_encoder(given.size, precision)

    def noises(indices: list[int]) -> torch.Tensor:
        drawn = [torch.randn(latent, generator=torch.Generator().manual_seed(i)) for i in indices]
        return torch.stack(drawn).to(device())

    def prompts(indices: list[int]) -> Conditioning:
        if encode is None:
            return Conditioning(torch.randn(len(indices), *prompt, device=device()))
        return encode([CAPTION.format(i) for i in indices])

    def pack(image: np.ndarray) -> tuple[bytes, str]:
        return encode_png(image, given.png_level), pixel_sha256(image)

    def images() -> Iterator[np.ndarray]:
        for indices in batches(range(given.images), batch):
            x_g = one_step(generator, noises(indices), T_INIT, prompts(indices))
            yield from quantise(codec.decode(x_g))

    some = list(range(batch))
    z, cond = noises(some), prompts(some)
    x_g = one_step(generator, z, T_INIT, cond)
    decoded = codec.decode(x_g)
    pictures = quantise(decoded)
    stages = {
        "noise": ms_per_image(lambda: noises(some), batch),
        "text": ms_per_image(lambda: prompts(some), batch) if encode else float("nan"),
        "UNet": ms_per_image(lambda: one_step(generator, z, T_INIT, cond), batch),
        "VAE decode": ms_per_image(lambda: codec.decode(x_g), batch),
        "quantise": ms_per_image(lambda: quantise(decoded), batch),
        f"pack, {given.threads} threads": ms_per_image(
            lambda: list(in_order(pack, pictures, given.threads, batch)), batch
        ),
    }
    # all together, into memory that is thrown away: a disk's speed is another question
    began_s = time.perf_counter()
    pngs = [png for png, _ in in_order(pack, images(), given.threads, batch)]
    elapsed_s, written = time.perf_counter() - began_s, sum(map(len, pngs))
    record = {
        "images": given.images,
        "images_per_s": given.images / elapsed_s,
        "image_kb": written / given.images / 1e3,
    }
    if given.feature_network and given.clip:
        scoring = Scoring(given, batch)
        stages |= scoring.stages(pngs[:batch])
        record["score"] = scoring.score(pngs)
        print("scored:", ", ".join(f"{name} {value:.4g}" for name, value in record["score"].items()))

    where = torch.cuda.get_device_name() if device() == "cuda" else "CPU"
    print(f"{given.size}, {precision}, blocks of {batch}, {where}, torch {torch.__version__}{peak_gib()}")
    print(f"{'stage':22} {'ms an image':>12} {'images/s':>10} {f'{SAMPLES:,} alone':>14}")
    for name, ms in stages.items():
        print(f"{name:22} {ms:12.3f} {1e3 / ms:10.1f} {ms * SAMPLES / 6e4:10.1f} min")
    print(
        f"generation of {given.images} images: {given.images / elapsed_s:.1f} images/s, {written / given.images / 1e3:.0f} kB each; "
        f"{SAMPLES:,} take {SAMPLES * elapsed_s / given.images / 60:.1f} min"
    )
    if given.json:
        record |= {"size": given.size, "precision": precision, "batch": batch, "device": where, "ms_per_image": stages}
        given.json.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()

"""Time how images are preprocessed for evaluation networks and encoded after sampling, by threads and by processes.

    OMP_NUM_THREADS=1 python benchmarks/image_pipeline.py [--workers 1 2] [--images 96] [--rounds 3]

512 px images that pack like photographs (about 500 kB). `prepare`: PNG decoded, hashed, cropped and shrunk to 256 with LANCZOS,
enlarged to 299 in float as clean-fid does, and to 224 in 8 bits as open_clip does. `pack`: PNG at level 1 and hash. Threads are
what sid_core uses; processes do the same work and send their results back. All ways alternate, after a warm-up.
"""

import argparse
import multiprocessing
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial

import numpy as np
from PIL import Image

from sid_core.data.images import decode_png, encode_png, enlarge, pixel_sha256, shrink
from sid_core.data.pool import in_order

AHEAD = 64


def photograph_like(seed: int) -> np.ndarray:
    """Sum noise at four scales: (512, 512, 3) uint8."""
    generator, total = np.random.default_rng(seed), np.zeros((512, 512, 3))
    for side, weight in ((4, 0.5), (16, 0.25), (64, 0.15), (512, 0.05)):
        noise = Image.fromarray(generator.integers(0, 256, (side, side, 3), dtype=np.uint8))
        total += weight * np.asarray(noise.resize((512, 512), Image.Resampling.BICUBIC), float)
    return total.clip(0, 255).astype(np.uint8)


def prepare(png: bytes) -> tuple[str, np.ndarray, np.ndarray]:
    """Preprocess an image as feature extraction does."""
    image = decode_png(png, "image")
    stored = shrink(image, 256)
    for_clip = Image.fromarray(stored).resize((224, 224), Image.Resampling.BICUBIC)
    return pixel_sha256(image), enlarge(stored, 299), np.asarray(for_clip)


def pack(image: np.ndarray) -> tuple[bytes, str]:
    """Encode an image as sampling does."""
    return encode_png(image, 1), pixel_sha256(image)


def images_per_s(run: Callable[[list], object], items: list) -> float:
    began_s = time.perf_counter()
    for _ in run(items):
        pass
    return len(items) / (time.perf_counter() - began_s)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--images", type=int, default=96)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    pictures = [photograph_like(seed) for seed in range(16)] * (given.images // 16)
    pngs = [encode_png(picture, 1) for picture in pictures]
    print(
        f"{len(pngs)} images of 512 px, {np.mean([len(png) for png in pngs]) / 1e3:.0f} kB each, {given.rounds} rounds"
    )
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    pools = {count: ProcessPoolExecutor(count, context) for count in given.workers}
    print(f"{'':8} {'workers':>7} {'threads':>20} {'processes':>20}   images/s, median (min to max)")
    for name, function, items in (("prepare", prepare, pngs), ("pack", pack, pictures)):
        measured: dict[tuple[str, int], list[float]] = {}
        for count in given.workers:
            list(pools[count].map(function, items[: 4 * count]))
        for _ in range(given.rounds):
            for count in given.workers:
                ways = {
                    "threads": partial(in_order, function, workers=count, ahead=AHEAD),
                    "processes": partial(pools[count].map, function),
                }
                for way, run in ways.items():
                    measured.setdefault((way, count), []).append(images_per_s(run, items))
        for count in given.workers:
            shown = [
                f"{statistics.median(v):.0f} ({min(v):.0f} to {max(v):.0f})"
                for v in (measured[way, count] for way in ("threads", "processes"))
            ]
            print(f"{name:8} {count:7} {shown[0]:>20} {shown[1]:>20}")
        few, many = min(given.workers), max(given.workers)
        for way in ("threads", "processes"):
            ratio = statistics.median(measured[way, many]) / statistics.median(measured[way, few])
            print(f"{name}: {many} {way} are {ratio:.2f} times as fast as {few}")
    for pool in pools.values():
        pool.shutdown()


if __name__ == "__main__":
    main()

"""Sample images of any prompt, one at a time, by a generator or its teacher. Scores do not use them."""

import logging
import time
from collections import OrderedDict
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..cluster.machine import device
from ..config import SEEDS
from ..data.images import quantise
from ..errors import UserError
from ..method import n_step
from ..models.backbones import Backbone, family_of
from ..models.devices import place
from ..models.generator import find_teacher, generator_folder, load_generator, recorded_steps
from ..models.teacher import latent_shape, load_backbone, load_image_codec, load_solver, load_text_encoder
from ..storage.files import atomic_path, check_place
from .generation import solve
from .preview import enlargement, to_png

log = logging.getLogger(__name__)

CACHED_GENERATORS = 4  # in memory: the paper's four scales, 3.4 GB each at Stable Diffusion's size


def sample(generator: Path, teacher: Path | None, prompt: str, seed: int, out: Path, count: int = 1) -> str:
    """Write `count` images of `prompt` as PNG, from `seed` and the following seeds; return a line with size and time.

    Args:
        generator: runs/NAME, or the folder `generator` in it.
        teacher: prepared teacher; None: the one the generator was distilled from, next to runs/.
        out: a file; with several images, each is written to out-SEED.png.


    Raises:
        UserError: a folder is missing, damaged, or belongs to another teacher; a seed out of range.
    """
    generator = generator_folder(generator)
    teacher = teacher or find_teacher(generator)
    if not teacher.is_dir():
        raise UserError(f"--teacher {teacher}: no such folder; expected results/EXPERIMENT/… of a finished run")
    if missing := family_of(teacher).missing(teacher):
        raise UserError(f"--teacher {teacher}: has no {missing[0]}; expected a prepared teacher, results/NAME/teacher")
    if count < 1 or not 0 <= seed <= SEEDS - count:
        raise UserError(f"--seed {seed} -n {count}: expected 1 or more images, and seeds from 0 to {SEEDS - 1}")
    check_place(out)
    seeds = range(seed, seed + count)
    paths = [out] if count == 1 else [out.with_name(f"{out.stem}-{one}{out.suffix}") for one in seeds]
    if not out.parent.is_dir():
        raise UserError(f"--out {out}: no such folder {out.parent}. Fix: create it, or give another path")
    log.info("loading the networks of %s and %s", generator, teacher)
    session = InferenceSession(teacher)
    session.generator(generator)
    taken_ms = []
    for path, one in zip(paths, seeds, strict=True):
        log.info("sampling %s, seed %d (%d of %d)", path, one, one - seed + 1, count)
        started = time.monotonic()
        pixels = session.image(generator, prompt, one)
        taken_ms.append(1000 * (time.monotonic() - started))
        with atomic_path(path) as temporary:
            temporary.write_bytes(to_png(pixels, enlarge=enlargement(len(pixels))))
    height, width = (side * enlargement(len(pixels)) for side in pixels.shape[:2])
    if count == 1:
        return f"{out}: {width} x {height} pixels, seed {seed}, {taken_ms[0]:.0f} ms"
    mean_ms = sum(taken_ms) / count
    size = f"{width} x {height} pixels"
    return f"{paths[0]} to {paths[-1]}: {size}, seeds {seed} to {seeds[-1]}, {mean_ms:.0f} ms an image"


class InferenceSession:
    """A teacher and its generators, loaded on first use, that sample one image at a time.

    Noise is drawn on the CPU: on one machine an image depends on network, prompt and seed, not on earlier images.

    Raises:
        UserError: a folder is damaged, or belongs to another teacher; a seed out of range.
    """

    def __init__(self, teacher: Path):
        self.folder, self._generators = Path(teacher), OrderedDict()
        self._encoder = place(load_text_encoder(teacher), "float32")
        self._codec = place(load_image_codec(teacher), "float32")
        self._shape = latent_shape(teacher)

    @cached_property
    def teacher(self) -> Backbone:
        return place(load_backbone(self.folder), "float32")

    def generator(self, folder: Path) -> tuple[Backbone, dict]:
        """Return the network and its generator.json; the CACHED_GENERATORS most recently used stay in memory."""
        if folder not in self._generators:
            network, record = load_generator(folder, self.folder)
            self._generators[folder] = place(network, "float32"), record
        self._generators.move_to_end(folder)
        if len(self._generators) > CACHED_GENERATORS:
            self._generators.popitem(last=False)
        return self._generators[folder]

    @torch.inference_mode()
    def image(self, generator: Path, prompt: str, seed: int) -> np.ndarray:
        """Sample an image (H, W, 3) uint8 of `prompt` by a generator."""
        network, record = self.generator(generator)
        steps = recorded_steps(record)
        noises = self._noises(seed, steps.noises)
        return self._decode(n_step(network, noises, steps, self._encoder.encode([prompt])))

    @torch.inference_mode()
    def teacher_image(self, prompt: str, seed: int, steps: int, guidance_scale: float) -> np.ndarray:
        """Sample an image (H, W, 3) uint8 by the teacher from the same noise, with DPM-Solver++."""
        solver = load_solver("dpm-solver", self.folder, steps)
        solver.set_timesteps(steps, device=device())
        cond, uncond = self._encoder.encode([prompt]), self._encoder.empty()
        return self._decode(solve(solver, self.teacher, self._noises(seed, 1)[0], cond, uncond, guidance_scale))

    def _noises(self, seed: int, count: int) -> list[Tensor]:
        if not 0 <= seed < SEEDS:
            raise UserError(f"seed={seed}: expected 0 to {SEEDS - 1}")
        source = torch.Generator().manual_seed(seed)
        return [torch.randn(1, *self._shape, generator=source).to(device()) for _ in range(count)]

    def _decode(self, latents: Tensor) -> np.ndarray:
        return quantise(self._codec.decode(latents))[0]

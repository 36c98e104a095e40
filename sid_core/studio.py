"""Images of any prompt, one at a time: by a generator, or by its teacher in several steps. Scores do not use them."""

from collections import OrderedDict
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .config import SEEDS
from .errors import UserError
from .evaluation.devices import place
from .evaluation.generation import solve
from .evaluation.images import quantise
from .files import atomic_path
from .machine import device
from .method import Denoiser, n_step
from .models.generator import load_generator
from .models.teacher import COMPONENTS, latent_shape, load_denoiser, make_solver
from .models.text import TextEncoder
from .models.vae import ImageCodec
from .preview import factor, to_png

KEPT = 4  # generators in memory: the paper's four scales, 3.4 GB each at Stable Diffusion's size


def sample(generator: Path, teacher: Path, prompt: str, seed: int, out: Path) -> None:
    """Write the image that `generator` makes of `prompt` from the noise of `seed` to the PNG `out`.

    Raises:
        UserError: a folder is missing, damaged, or belongs to another teacher; a seed that is none.
    """
    for folder, what in ((generator, "generator"), (teacher, "teacher")):
        if not folder.is_dir():
            raise UserError(f"--{what} {folder}: no such folder; expected results/EXPERIMENT/… of a finished run")
    for name, files in COMPONENTS.items():
        if not any((teacher / name / file).is_file() for file in files):
            raise UserError(
                f"--teacher {teacher}: has no {name}; expected a prepared teacher, results/EXPERIMENT/teacher"
            )
    pixels = Studio(teacher).image(generator, prompt, seed)
    with atomic_path(out) as temporary:
        temporary.write_bytes(to_png(pixels, enlarge=factor(len(pixels))))


class Studio:
    """A teacher and its generators, each loaded when it is first asked for: one image of a prompt at a time.

    Noise is drawn on the CPU: on one machine an image depends on network, prompt and seed, not on what was drawn before.

    Raises:
        UserError: a folder is damaged, or belongs to another teacher; a seed that is none.
    """

    def __init__(self, teacher: Path):
        self.folder, self._generators = Path(teacher), OrderedDict()
        self._encoder = place(TextEncoder.from_directory(teacher), "float32")
        self._codec = place(ImageCodec.from_directory(teacher), "float32")
        self._shape = latent_shape(teacher)

    @cached_property
    def teacher(self) -> Denoiser:
        return place(load_denoiser(self.folder), "float32")

    def generator(self, folder: Path) -> tuple[Denoiser, dict]:
        """The network and its generator.json; the KEPT that were asked for last stay in memory."""
        if folder not in self._generators:
            network, record = load_generator(folder, self.folder)
            self._generators[folder] = place(network, "float32"), record
        self._generators.move_to_end(folder)
        if len(self._generators) > KEPT:
            self._generators.popitem(last=False)
        return self._generators[folder]

    @torch.inference_mode()
    def image(self, generator: Path, prompt: str, seed: int) -> np.ndarray:
        """What a generator makes of `prompt`: (H, W, 3) uint8."""
        network, record = self.generator(generator)
        noises = self._noises(seed, record["num_steps"])
        return self._decode(n_step(network, noises, record["t_init"], self._encoder.encode([prompt])))

    @torch.inference_mode()
    def teacher_image(self, prompt: str, seed: int, steps: int, guidance_scale: float) -> np.ndarray:
        """Draw what the teacher makes of it from the same noise, by DPM-Solver++: (H, W, 3) uint8."""
        solver = make_solver("dpm-solver", self.folder, steps)
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

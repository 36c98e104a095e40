"""Measure the embedded teacher as a baseline by solver, steps and guidance scale, on the validation split alone.

    OMP_NUM_THREADS=1 python benchmarks/teacher_solvers.py [--samples 5000] [--rows dpm-solver-karras:8:2 ddim:50:2 …]

Each row is SOLVER:STEPS:CFG. All rows have the same captions and noise, those of `prompts.split: validation`, and are compared with
its own 10,000 reference images, so that nothing is chosen on what is reported. The defaults are the table of docs/results-shapes.md
and take half an hour of one core. `make bench` runs them with fewer samples, whose FID is higher.
"""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from sid_core.config import SEEDS, FeatureSettings, Sampling, Teacher
from sid_core.data.images import quantise
from sid_core.data.pool import batches
from sid_core.data.shapes import scenes
from sid_core.evaluation.metrics.frechet import Gaussian, Reference
from sid_core.evaluation.metrics.samples import clip_score
from sid_core.evaluation.networks.required import Clip, Features
from sid_core.models.conditioning import Conditioning
from sid_core.models.teacher import load_solver, prepare_teacher
from sid_core.sampling.generation import EPS_ERROR_SAMPLES, solve
from sid_core.sampling.inputs import Inputs

CONVERGENCE = [f"{solver}:{n}:2" for solver in ("ddim", "dpm-solver", "dpm-solver-karras") for n in (8, 16, 25, 50)]
SCALES = [f"dpm-solver-karras:8:{scale}" for scale in (1, 1.5, 2.5, 3)]
REFERENCE = 10_000
BATCH = 250


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--rows", nargs="+", default=[*CONVERGENCE, *SCALES], metavar="SOLVER:STEPS:CFG")
    given = parser.parse_args()

    settings = FeatureSettings(batch=BATCH)
    features, clip = Features(settings), Clip(settings)
    _, captions = scenes.draw("validation", given.samples)
    texts = clip.texts(captions)
    drawn = scenes.draw("validation-reference", REFERENCE)[0]
    reference = Reference(Gaussian.fit(torch.cat([features.rows(part) for part in batches(drawn, BATCH)])))
    with tempfile.TemporaryDirectory() as folder:
        teacher, lines = Path(folder) / "teacher", Path(folder) / "captions.txt"
        prepare_teacher(Teacher(), teacher)
        lines.write_text("\n".join(captions) + "\n", encoding="utf-8")
        inputs = Inputs(Sampling(batch=BATCH, seed=SEEDS // 2), teacher, lines)
        print(f"{'solver':18s} steps  CFG  NFE    FID    CLIP   eps error   CPU s")
        for row in given.rows:
            began_s = time.process_time()
            name, steps, scale = row.split(":")
            images, errors = sample(inputs, teacher, name, int(steps), float(scale), given.samples)
            sampled_s = time.process_time() - began_s
            fid = reference.distance(Gaussian.fit(torch.cat([features.rows(part) for part in batches(images, BATCH)])))
            agreement = clip_score(torch.cat([clip.images(part) for part in batches(images, BATCH)]), texts, 10).value
            nfe = int(steps) * (1 if float(scale) == 1 else 2)
            print(
                f"{name:18s} {steps:>5s} {scale:>4s} {nfe:4d} {fid:6.3f}  {agreement:.4f}  {np.mean(errors):10.4f} {sampled_s:7.0f}",
                flush=True,
            )


@torch.inference_mode()
def sample(inputs: Inputs, teacher: Path, name: str, steps: int, scale: float, count: int) -> tuple[list, list[float]]:
    """Return `count` images of the teacher and its epsilon-prediction error on the first thousand."""

    def latents(noises: torch.Tensor, cond: Conditioning) -> torch.Tensor:
        solver = load_solver(name, teacher, steps)
        return solve(solver, inputs.teacher, noises[:, 0], cond, inputs.empty_prompt, scale)

    images, errors = [], []
    for indices in inputs.batches(0, count):
        x_0 = inputs.by_block(latents, inputs.noises(indices, 1), inputs.prompts(indices))
        images += list(quantise(inputs.by_block(inputs.codec.decode, x_0)))
        if len(errors) < EPS_ERROR_SAMPLES:
            errors += inputs.eps_errors(x_0, indices)
    return images[:count], errors[:EPS_ERROR_SAMPLES]


if __name__ == "__main__":
    main()

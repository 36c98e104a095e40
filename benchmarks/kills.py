"""Kill a distillation again and again, compare its bits with an uninterrupted one, and time the checkpoints.

    python benchmarks/kills.py [--runs 5] [--kills 20] [--iterations 200]

Each run distils the embedded teacher with a state saved after every iteration, and is killed (SIGKILL) at random moments, every
second time while a state is being written; then it finishes. Processes are forked, so that a kill costs no imports. All runs
must give the weights of an undisturbed one. The share of the time that training waited for saving is measured in that one.
"""

import argparse
import multiprocessing
import os
import random
import signal
import tempfile
import time
from pathlib import Path

import torch

from sid_core.config import DistillSettings, load_config
from sid_core.config import Teacher as TeacherSettings
from sid_core.data.shapes import scenes
from sid_core.models.teacher import prepare_teacher
from sid_core.pipeline.settings import stage_settings
from sid_core.storage.files import sha256_file
from sid_core.training.run import distill
from sid_core.training.state import StateWriter

WEIGHTS = Path("generator") / "unet" / "diffusion_pytorch_model.safetensors"
BATCH = 8
PROMPTS = scenes.draw("train", 500)[1]


def make_settings(iterations: int) -> DistillSettings:
    """Return the shipped run at scale 2, shorter and saved after every iteration."""
    files = stage_settings(load_config(Path(__file__).parents[1] / "config.yaml"))
    settings = files["runs/lsg-2/settings.yaml"]
    changes = {
        "train_kimg": iterations * BATCH / 1000,
        "batch": BATCH,
        "micro_batch": BATCH,
        "state_every_nimg": BATCH,
        "log_every_nimg": BATCH,
    }
    return settings.model_copy(update={"distill": settings.distill.model_copy(update=changes)})


def child(settings: DistillSettings, teacher: Path, folder: Path) -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # the progress bar
    distill(settings, teacher, PROMPTS, folder / "state", folder / "generator")
    os._exit(0)


def killed_run(settings: DistillSettings, teacher: Path, folder: Path, kills: int, dice: random.Random) -> int:
    """Run to the end through `kills` kills; return how many of them hit a checkpoint during its write."""
    fork, done, hits = multiprocessing.get_context("fork"), 0, 0
    while True:
        process = fork.Process(target=child, args=(settings, teacher, folder))
        process.start()
        if done < kills:
            time.sleep(dice.uniform(0.2, 2))
            deadline = time.monotonic() + 2
            while done % 2 and not _writing(folder) and time.monotonic() < deadline:
                time.sleep(0.0005)
            if process.is_alive():
                os.kill(process.pid, signal.SIGKILL)
                done += 1
        process.join()
        hits += process.exitcode == -signal.SIGKILL and _writing(folder)
        if process.exitcode == 0:
            assert done == kills, f"only {done} kills before the end: raise --iterations"
            return hits


def _writing(folder: Path) -> bool:
    return any((folder / "state").glob("state-*/.*"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--kills", type=int, default=20, help="per run")
    parser.add_argument("--iterations", type=int, default=200)
    args = parser.parse_args()
    torch.set_num_threads(1)
    settings, waited = make_settings(args.iterations), []
    inner = StateWriter.write

    def timed(self, *given) -> None:
        started = time.perf_counter()
        inner(self, *given)
        waited.append(time.perf_counter() - started)

    with tempfile.TemporaryDirectory() as place:
        teacher, whole = Path(place) / "teacher", Path(place) / "whole"
        prepare_teacher(TeacherSettings(), teacher)
        StateWriter.write = timed
        started = time.perf_counter()
        distill(settings, teacher, PROMPTS, whole / "state", whole / "generator")
        spent = time.perf_counter() - started
        StateWriter.write = inner
        print(
            f"saving: {1000 * sum(waited) / len(waited):.1f} ms a state, {100 * sum(waited) / spent:.2f} % of the run's time"
        )
        expected, hits = sha256_file(whole / WEIGHTS), 0
        for run in range(args.runs):
            folder = Path(place) / f"run-{run}"
            hits += killed_run(settings, teacher, folder, args.kills, random.Random(run))
            assert sha256_file(folder / WEIGHTS) == expected, f"run {run}: other weights than the undisturbed run"
            print(f"run {run}: {args.kills} kills, weights bit-equal", flush=True)
        print(
            f"{args.runs * args.kills} kills, {hits} of them while a state was written: every run ended with the same bits"
        )


if __name__ == "__main__":
    main()

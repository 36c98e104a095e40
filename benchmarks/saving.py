"""Time how long a checkpoint takes to save, and how long training waits for it.

    python benchmarks/saving.py [--folder /dev/shm] [--width 160] [--rounds 3]

A UNet of SD 1.5's layers, `width` channels at its first level (320: SD 1.5 itself, whose state of 17.2 GB takes twice as much memory;
160: a quarter of it), is saved by the real code to a new folder in one that is there: one in memory (/dev/shm) shows what the code takes, one on a disk what
the disk adds. Training waits for the copy alone.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import torch
from diffusers import UNet2DConditionModel

from sid_core.models.architectures import ARCHITECTURES
from sid_core.storage.states import saved_states
from sid_core.training import state
from sid_core.training.distributed import World
from sid_core.training.flat import Layout


def make_trainer(width: int) -> SimpleNamespace:
    """Make a checkpoint's contents in host memory; all vectors are one, to save memory."""
    channels = [width, 2 * width, 4 * width, 4 * width]
    with torch.device("meta"):
        layout = Layout(UNet2DConditionModel(**ARCHITECTURES["sd15"].network | {"block_out_channels": channels}))
    vector = torch.rand(layout.size)
    optimizer = SimpleNamespace(second=vector, first=None, steps=torch.tensor(1))
    student = SimpleNamespace(master=vector, optimizer=optimizer, guard=SimpleNamespace(saved=dict))
    return SimpleNamespace(
        world=World(), layout=layout, ema_weights=vector, trained={"fake_score": student, "generator": student},
        whole=lambda vector: vector, iteration=0, nimg=0, phases_done=0, metrics={},
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="on the disk to try (default: the system's for temporary files)")
    parser.add_argument("--width", type=int, default=160)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        measure(Path(folder), given.width, given.rounds)


def measure(folder: Path, width: int, rounds: int) -> None:
    """Save to an empty folder `rounds` times and print the times."""
    trainer = make_trainer(width)
    # of two threads, one waits for the other
    ways = {"all, files side by side": state.THREADS, "all, one file at a time": 2}
    times = {"copy": [], **{way: [] for way in ways}}
    for way in [*ways] * rounds:
        state.THREADS = ways[way]
        with state.StateWriter(folder, keep=1) as writer:
            writer.write(trainer, {})  # the first one makes the copies' memory
            writer.wait()
            trainer.iteration += 1
            started = time.perf_counter()
            writer.write(trainer, {})
            copied = time.perf_counter()
            writer.wait()
            times["copy"].append(copied - started)
            times[way].append(time.perf_counter() - started)
        trainer.iteration += 1
    size = sum(path.stat().st_size for path in saved_states(folder)[0].glob("*.safetensors")) / 1e9
    print(f"{size:.2f} GB to {folder}")
    for way, taken in times.items():
        median = statistics.median(taken)
        print(f"{way:25} {median:6.2f} s ({min(taken):.2f} to {max(taken):.2f}), {size / median:.2f} GB/s")


if __name__ == "__main__":
    main()

"""Check at real size that a training resumed from a checkpoint on disk gives equal bits, and time writing and reading it.

    python benchmarks/resume.py --size sd15 --precision bfloat16        # on a GPU; 17 GB of disk
    python benchmarks/resume.py                                        # small, on a CPU

Needs torch, diffusers and safetensors; nothing is downloaded. One training runs four iterations and writes a checkpoint after two;
another of other initial weights loads it and runs the last two.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

import torch

from sid_core.method import DTYPES
from sid_core.models import architectures
from sid_core.training.dry_run import make_trainer
from sid_core.training.iteration import Trainer
from sid_core.training.state import StateWriter, load_newest_state


def vectors(trainer: Trainer) -> dict[str, torch.Tensor]:
    """Return copies in host memory of what the product depends on."""
    trained = {name: network.master for name, network in trainer.trained.items()}
    second = {f"{name}_second_moment": network.optimizer.second for name, network in trainer.trained.items()}
    return {name: vector.cpu().clone() for name, vector in (trained | second | {"ema": trainer.ema_weights}).items()}


def main() -> None:
    gpu = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=[*architectures.ARCHITECTURES, "shapes"], default="sd15" if gpu else "small")
    parser.add_argument("--precision", choices=DTYPES, default="bfloat16" if gpu else "float32")
    parser.add_argument("--micro-batch", type=int, default=4 if gpu else 1)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--device", default="cuda" if gpu else "cpu")
    parser.add_argument("--json", type=Path, help="write the result here too")
    given = parser.parse_args()

    def new_trainer() -> Trainer:
        settings = {"precision": given.precision, "compile": given.compile, "lr": 1e-4}
        settings |= {"batch": 2 * given.micro_batch, "micro_batch": given.micro_batch}
        return make_trainer(architectures.from_name(given.size), given.device, **settings)

    with tempfile.TemporaryDirectory(prefix="resume-") as folder:
        trainer = new_trainer()
        trainer.step()
        trainer.step()
        began_s = time.perf_counter()
        with StateWriter(Path(folder), 1) as writer:
            writer.write(trainer, {})
        write_s, size = time.perf_counter() - began_s, sum(path.stat().st_size for path in Path(folder).rglob("*.*"))
        trainer.step()
        trainer.step()
        expected = vectors(trainer)
        del trainer
        trainer = new_trainer()
        trainer.step()  # leaves the common start
        began_s = time.perf_counter()
        load_newest_state(Path(folder), trainer)
        read_s = time.perf_counter() - began_s
    trainer.step()
    trainer.step()
    found = vectors(trainer)
    different = [name for name, vector in expected.items() if not torch.equal(vector, found[name])]
    record = {"equal": not different, "different": different, "iterations": trainer.iteration}
    record |= {"checkpoint_gb": size / 1e9, "write_s": write_s, "read_s": read_s, "precision": given.precision}
    print(", ".join(f"{name} {value}" for name, value in record.items()))
    if given.json:
        given.json.write_text(json.dumps(record, indent=2) + "\n")
    if different:
        raise SystemExit(f"{', '.join(different)}: differ after a resume")


if __name__ == "__main__":
    main()

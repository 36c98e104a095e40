"""Time an iteration of SiD-LSG per image, sustained, on random weights of a teacher's shape.

    python benchmarks/training_step.py                                         # sd15 on a GPU, small on a CPU
    python benchmarks/training_step.py --precision bfloat16 --micro-batch 16 --batch 64 --compile --seconds 60 --json step.json
    python benchmarks/training_step.py --beside THEIRS.py                      # interface: parts/beside.py
    python benchmarks/training_step.py --size shapes --profile docs/figures/where_time_goes.png

Needs torch, diffusers and safetensors; nothing is downloaded (--profile needs matplotlib too). An image is one sample for the fake
score and one for the generator. Warm-up comes first: lazy initialisation and compilation in the first iteration, then ten seconds, so that
clocks settle. TFLOP/s count the fixed work of an image at SD 1.5's size, so that saved work shows as speed.
"""

import argparse
import json
import time
from pathlib import Path

import torch
from parts import beside, kinds
from parts.clock import clocks, machine, measure, quartiles
from parts.peak import peak, restart_peak

from sid_core.method import DTYPES
from sid_core.models import architectures
from sid_core.training.dry_run import make_trainer

TFLOP_PER_IMAGE = {True: 15.38, False: 9.33}  # of sd15, guided or not; docs/performance.md


def main() -> None:
    given = _arguments()
    device = torch.device(given.device)
    if given.threads:
        torch.set_num_threads(given.threads)
    architecture = architectures.from_name(given.size)
    before = restart_peak(device)
    trainer = make_trainer(
        architecture, device, given.kappa, batch=given.batch, micro_batch=given.micro_batch, precision=given.precision,
        checkpointing=given.checkpointing, compile=given.compile, deterministic=given.deterministic,
    )  # fmt: skip
    record = {"settings": {k: v for k, v in vars(given).items() if k not in ("json", "profile", "beside")}}
    record["machine"] = machine(device)
    print(" ".join(f"{k}={v}" for k, v in (record["settings"] | record["machine"]).items()))
    record |= _alone(trainer, given, device)
    record["peak_gb"] = (peak(device) - before) / 1e9
    print(f"peak memory {record['peak_gb']:.2f} GB")
    _write(record, given)  # what follows may run out of memory
    if given.beside:
        record["beside"] = _beside(trainer, architecture, given)
    trainer.raise_if_stopped()  # a time of NaNs is none
    if given.profile:
        spent = kinds.where_time_goes(trainer.step, device)
        record["profile_s"] = spent
        print(kinds.as_table(spent))
        title = f"{given.size}, {given.precision}, batch {given.batch}, kappa {given.kappa:g}, {record['machine']['device']}"
        if given.profile is not True:
            kinds.draw(spent, title, given.profile)
    _write(record, given)


def _write(record: dict, given: argparse.Namespace) -> None:
    if given.json:
        given.json.write_text(json.dumps(record, indent=2, default=str) + "\n")


def _alone(trainer, given: argparse.Namespace, device: torch.device) -> dict:
    """Warm up, measure, print and return the result."""
    started = time.perf_counter()
    measure(trainer.step, 0, device, least=1)
    first_s = time.perf_counter() - started
    measure(trainer.step, given.warmup, device, least=1)
    restart_peak(device)
    before = clocks(device)
    times = measure(trainer.step, given.seconds, device)
    low, median, high = (1000 * t / given.batch for t in quartiles(times))
    third = max(len(times) // 3, 1)
    result = {
        "iterations": len(times),
        "first_iteration_s": first_s,
        "ms_per_image": {"median": median, "quartiles": [low, high]},
        "last_third_over_first": quartiles(times[-third:])[1] / quartiles(times[:third])[1],
        "images_per_s": 1000 / median,
        "clocks": {"before": before, "after": clocks(device)},
    }
    print(f"first iteration {first_s:.1f} s; then {len(times)} iterations in {sum(times):.1f} s")
    print(f"{median:.2f} ms per image (quartiles {low:.2f} to {high:.2f}), {1000 / median:.2f} images/s")
    print(f"last third over first third: {result['last_third_over_first']:.3f}")
    if given.size == "sd15":
        result["tflop_per_s"] = 1000 * TFLOP_PER_IMAGE[given.kappa != 1] / median
        print(f"{result['tflop_per_s']:.1f} TFLOP/s of the fixed {TFLOP_PER_IMAGE[given.kappa != 1]} TFLOP an image")
    if device.type == "cuda":
        print(f"clocks {before} -> {result['clocks']['after']}")
    return result


def _beside(trainer, architecture, given: argparse.Namespace) -> dict:
    name, theirs = beside.load(given.beside, architecture, trainer)
    measure(theirs, given.warmup, trainer.device, least=1)
    result = {"name": name} | beside.compare(trainer.step, theirs, trainer, given.seconds, given.rounds)
    print(f"{name}: {result['theirs_ms_per_image']:.2f} ms per image, ours {result['ours_ms_per_image']:.2f}")
    print(
        f"ratio {result['ratio']:.2f} ({result['ratio_min']:.2f} to {result['ratio_max']:.2f} in {given.rounds} rounds)"
    )
    return result


def _arguments() -> argparse.Namespace:
    gpu = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sizes = [*architectures.ARCHITECTURES, "shapes"]
    parser.add_argument("--size", choices=sizes, default="sd15" if gpu else "small")
    parser.add_argument("--precision", choices=DTYPES, default="bfloat16" if gpu else "float32")
    parser.add_argument("--micro-batch", type=int, default=16 if gpu else 4, help="images per backward pass")
    parser.add_argument(
        "--batch", type=int, help="images per iteration and half (default: 4 micro-batches, 1 on a CPU)"
    )
    parser.add_argument("--kappa", type=float, default=2.0, help="all guidance scales; 1 is no guidance")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--checkpointing", action="store_true")
    parser.add_argument("--deterministic", action=argparse.BooleanOptionalAction, default=True, help="as distill's")
    parser.add_argument("--seconds", type=float, default=60.0 if gpu else 5.0, help="measured for this long")
    parser.add_argument("--warmup", type=float, default=10.0 if gpu else 1.0, help="seconds, after the first iteration")
    parser.add_argument("--device", default="cuda" if gpu else "cpu")
    parser.add_argument("--threads", type=int)
    parser.add_argument(
        "--beside", type=Path, metavar="FILE.py", help="another implementation, measured in turn with ours"
    )
    parser.add_argument("--rounds", type=int, default=4, help="turns of each, with --beside")
    parser.add_argument(
        "--profile",
        type=Path,
        nargs="?",
        const=True,
        metavar="PICTURE.png",
        help="also profile, and draw the kinds of work",
    )
    parser.add_argument("--json", type=Path, help="write the result here too")
    given = parser.parse_args()
    given.batch = given.batch or given.micro_batch * (4 if gpu else 1)
    return given


if __name__ == "__main__":
    main()

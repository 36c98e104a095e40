"""Count the FLOPs and kernels of an iteration on the device meta: no GPU, no weights, the same numbers everywhere.

    python benchmarks/counts.py [--size sd15 small shapes] [--kappa 2 1] [--json counts.json]
    python benchmarks/counts.py --methods [--size sd15]

FLOPs are those of convolutions, products of matrices and attention, as torch's FlopCounterMode counts them (a multiply-add is two);
kernels are operations that compute or copy, not views. Tests hold both as a guard. --methods compares objectives, strategies and
numbers of steps, with the GPU memory that sid_core.training.memory predicts.
"""

import argparse
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from sid_core.models import architectures
from sid_core.training.dry_run import make_run, make_trainer
from sid_core.training.iteration import Trainer
from sid_core.training.memory import GB, fused_attention, predict

aten = torch.ops.aten
NO_KERNEL = {
    "_unsafe_view",
    "empty",
    "empty_like",
    "empty_strided",
    "new_empty",
    "new_empty_strided",
    "detach",
    "detach_",
    "lift_fresh",
}


class Work(TorchDispatchMode):
    """Count the operations that are dispatched.

    Attributes:
        flops: of convolutions, products and attention, forward and backward.
        kernels: number of operations by name, views and allocations left out.
        weight_gradients: convolutions' gradients of their weights.
    """

    def __init__(self):
        super().__init__()
        self.flops, self.kernels, self.weight_gradients = 0, Counter(), 0

    def __torch_dispatch__(self, operation: Callable, types: tuple, args: tuple = (), kwargs: dict | None = None):
        result = operation(*args, **(kwargs or {}))
        packet = operation.overloadpacket
        if packet in flop_registry:
            self.flops += flop_registry[packet](*args, **(kwargs or {}), out_val=result)
        name = packet.__name__
        if not operation.is_view and name not in NO_KERNEL:
            self.kernels[name] += 1
        if operation is aten.convolution_backward.default:
            self.weight_gradients += args[-1][1]  # output_mask: input, weight, bias
        return result


def work_of(function: Callable[[], object]) -> Work:
    """Call `function` and return its counts."""
    with Work() as work:
        function()
    return work


def count(size: str, kappa: float, run: dict | None = None, **changes) -> Work:
    """Count an iteration at batch 1 with fused attention, whose backward is five products instead of four.

    Args:
        run: changes to a run with all guidance scales `kappa`.
    """
    architecture = architectures.from_name(size)
    settings = {"batch": 1, "micro_batch": 1} | changes
    trainer = make_trainer(architecture, "meta", run=make_run(kappa, **(run or {})), **settings)
    with fused_attention():
        return work_of(trainer.step)


LONG = {"fake_train": 1, "fake_eval": 1}
METHODS = {
    "SiD, LSG": {},
    "SiD, long guidance": LONG,
    "SiD, Zero-CFG": {"fake_train": 0, "fake_eval": 0, "teacher": 1},
    "SiD, Anti-CFG": {"fake_train": -1, "fake_eval": -1, "teacher": 1},
    "DMD, long guidance, 5 updates of the fake score": LONG | {"objective": "dmd", "fake_updates": 5},
    "Diff-Instruct, long guidance": LONG | {"objective": "diff_instruct"},
    "SiD, LSG, mixture of 4 steps, the longest iteration": {"num_steps": 4, "steps_objective": "mixture"},
    "SiD, LSG, 4 steps, the last trained": {"num_steps": 4},
}


def compare_methods(size: str) -> None:
    """Print the work of each method, and the GPU memory of its training in bfloat16."""
    architecture = architectures.from_name(size)
    print(f"| {size} | passes | TFLOP | kernels | GB at micro-batch n |\n|---|--:|--:|--:|---|")
    for name, run in METHODS.items():
        passes = make_trainer(architecture, "meta", run=make_run(2.0, **run)).objective.network_passes()
        with patch.object(Trainer, "_walked", lambda trainer: trainer.objective.steps.count):
            work = count(size, 2.0, run, precision="bfloat16")
            memory = predict(architecture, precision="bfloat16", run=make_run(2.0, **run))
        gigabytes = f"{memory.fixed / GB:.1f} + {memory.per_image / GB:.2f} n"
        print(f"| {name} | {passes:g} | {work.flops / 1e12:.4g} | {work.kernels.total():,} | {gigabytes} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--size", nargs="+", default=["sd15", "shapes"], choices=[*architectures.ARCHITECTURES, "shapes"]
    )
    parser.add_argument("--kappa", nargs="+", type=float, default=[2.0, 1.0])
    parser.add_argument("--precision", default="bfloat16")
    parser.add_argument("--methods", action="store_true", help="compare objectives, strategies and steps")
    parser.add_argument("--json", type=Path, help="write the result here too")
    given = parser.parse_args()
    if given.methods:
        for size in given.size:
            compare_methods(size)
        return
    rows = []
    print("| size | kappa | TFLOP per image | kernels per iteration | most frequent |\n|---|--:|--:|--:|---|")
    for size in given.size:
        for kappa in given.kappa:
            work = count(size, kappa, precision=given.precision)
            rows.append(
                {"size": size, "kappa": kappa, "flops": work.flops, "kernels": dict(work.kernels.most_common())}
            )
            most = ", ".join(f"{name} {n:,}" for name, n in work.kernels.most_common(4))
            print(f"| {size} | {kappa:g} | {work.flops / 1e12:.4g} | {work.kernels.total():,} | {most} |", flush=True)
    if given.json:
        given.json.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()

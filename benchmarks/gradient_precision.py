"""Compare the 16-bit gradients of both networks with float32's, by timestep.

    python benchmarks/gradient_precision.py                          # the embedded teacher, two CPU minutes
    python benchmarks/gradient_precision.py --configfile experiments/sd15.yaml --teacher results/sd15/teacher \\
        --captions results/sd15/prompts/train.txt --from-state results/sd15/state/lsg-1.5 --out gradients

Weights, prompts, noise and t are the same in every dtype; t is sampled from one bin of [20, 980) at a time,
because the generator's gradient is a small difference of close numbers, amplified by sigma / alpha. `another batch`
compares float32 with float32 on other prompts and noise: rounding far below it does not matter.

At the start of a run both scores are equal and the generator's gradient is rounding alone, so that the comparison
begins after some iterations, or at a checkpoint.
"""

import argparse
import csv
import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor

from sid_core import config
from sid_core.config import DistillSettings
from sid_core.data.captions import read_captions
from sid_core.data.shapes.captions import all_captions
from sid_core.errors import UserError
from sid_core.method import DTYPES, Phase
from sid_core.training.flat import ALIGN, norm
from sid_core.training.iteration import Trainer
from sid_core.training.precision import set_arithmetic
from sid_core.training.run import make_trainer
from sid_core.training.state import load_newest_state

ROOT = Path(__file__).parents[1]
NETWORKS = {"fake": "fake score", "generator": "generator"}
ANOTHER = "another batch"
SCALINGS = 24  # float16's loss scale may overflow so often before it fits
LAST = 10**6  # iterations that no run reaches: draws of their own


@dataclass(frozen=True)
class Row:
    """A gradient g compared with float32's g_0. `t` in [t_low, t_high)."""

    network: str
    precision: str
    t_low: int
    t_high: int
    cosine: float
    relative_error: float  # |g - g_0| / |g_0|
    norm_ratio: float  # |g| / |g_0|


def check_precision(
    settings: DistillSettings,
    teacher: Path,
    captions: Sequence[str],
    images: int,
    precisions: Sequence[str],
    bins: int,
    warmup: int,
    state: Path | None,
) -> list[Row]:
    """Compute gradients of batches of `images` in each of `precisions`, one batch per bin.

    float32's are kept in the host's memory meanwhile: 2 * (bins + 1) vectors of the network's size.

    Args:
        bins: equal parts of the noise levels [20, 980); the rows of the whole range are the means over them.
        warmup: iterations in float32 before the check, where there is no `state`.
        state: folder of a run's training state to begin at.
    """
    for precision in precisions:
        if precision not in DTYPES:
            raise UserError(f"--precision {precision}: expected {', '.join(DTYPES)}")
    part = math.gcd(images, settings.distill.micro_batch)
    batches = settings.distill.model_copy(update={"batch": images, "micro_batch": part})
    settings = settings.model_copy(update={"distill": batches})
    edges = _edges(*Trainer.noise_levels, bins)
    trainer = _trainer(settings, teacher, captions, "float32")
    if state is None:
        for _ in range(warmup):
            trainer.step()
    elif load_newest_state(state, trainer) is None:
        raise UserError(f"--from-state {state}: no saved state there; expected the state folder of a run")
    weights = {half: student.master.to("cpu", copy=True) for half, student in trainer.trained.items()}
    reference = list(_gradients(trainer, edges))
    rows = list(_rows(ANOTHER, reference, _gradients(trainer, edges, first=LAST + bins), edges))
    del trainer
    for precision in precisions:
        trainer = _trainer(settings, teacher, captions, precision)
        for half, student in trainer.trained.items():
            student.master.copy_(weights[half])
            student.refresh()
        rows += _rows(precision, reference, _gradients(trainer, edges), edges)
        del trainer  # before the next one: both may not fit
    return rows


def to_markdown(rows: list[Row]) -> str:
    """Format a line for each network, dtype and bin; the last bin of each dtype is the whole range."""
    lines = [
        "| network | dtype | t | cosine | 1 − cosine | relative error | norm ratio |",
        "|---|---|---|--:|--:|--:|--:|",
    ]
    for row in sorted(rows, key=lambda row: row.network):
        lines.append(
            f"| {row.network} | {row.precision} | {row.t_low}–{row.t_high - 1} | {row.cosine:.5f} "
            f"| {1 - row.cosine:.1e} | {row.relative_error:.2e} | {row.norm_ratio:.4f} |"
        )
    return "\n".join(lines) + "\n"


def write(rows: list[Row], folder: Path) -> None:
    """Write gradients.csv and gradients.md into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "gradients.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(Row)], lineterminator="\n")
        writer.writeheader()
        writer.writerows(asdict(row) for row in rows)
    (folder / "gradients.md").write_text(to_markdown(rows), encoding="utf-8")


def _edges(t_min: int, t_max: int, bins: int) -> list[tuple[int, int]]:
    if not 1 <= bins <= t_max - t_min:
        raise UserError(f"--bins {bins}: expected 1 to {t_max - t_min}, the number of noise levels")
    cuts = [t_min + (t_max - t_min) * i // bins for i in range(bins + 1)]
    return list(pairwise(cuts))


def _trainer(settings: DistillSettings, teacher: Path, captions: Sequence[str], precision: str) -> Trainer:
    """Make a Trainer that tolerates any number of non-finite gradients."""
    changes = {"precision": precision, "nonfinite": "skip", "offload": "none", "shard": "none", "compile": False}
    distill = settings.distill.model_copy(update=changes | {"proxy_samples": 0})
    trainer = make_trainer(settings.model_copy(update={"distill": distill}), teacher, captions)
    for trained in trainer.trained.values():
        trained.guard.limit = 10**9
    return trainer


def _gradients(trainer: Trainer, edges: list[tuple[int, int]], first: int = LAST) -> Iterator[dict[str, Tensor]]:
    """Yield both networks' gradients (size,) in host memory per bin; random inputs are those of iterations from `first`."""
    set_arithmetic(trainer.settings.precision)
    settings, trainer.settings = trainer.settings, trainer.settings.model_copy(update={"lr_final": None})
    for student in trainer.trained.values():
        student.lr = 0.0  # gradients, and no update
    for iteration, levels in enumerate(edges, first):
        trainer.iteration, trainer.noise_levels = iteration, levels
        yield {phase.name: _gradient(trainer, phase) for phase in trainer.phases}
    trainer.settings = settings


def _gradient(trainer: Trainer, phase: Phase) -> Tensor:
    for _ in range(SCALINGS):
        trainer._update(phase)
        if torch.isfinite(trainer.gradient.parameters).all():
            break
    return trainer.gradient.parameters.to("cpu", copy=True)


def _rows(
    precision: str,
    reference: list[dict[str, Tensor]],
    gradients: Iterator[dict[str, Tensor]],
    edges: list[tuple[int, int]],
) -> Iterator[Row]:
    """Yield a row per bin, then one for the whole range."""
    sums: dict[str, list[Tensor]] = {}
    for expected, found, (low, high) in zip(reference, gradients, edges, strict=True):
        for half, name in NETWORKS.items():
            pair = expected[half], found[half]
            yield Row(name, precision, low, high, *_compare(*pair))
            before = sums.get(half)
            sums[half] = (
                [g.clone() for g in pair] if before is None else [a.add_(g) for a, g in zip(before, pair, strict=True)]
            )
    for half, name in NETWORKS.items():
        yield Row(name, precision, edges[0][0], edges[-1][1], *_compare(*sums[half]))


def _compare(expected: Tensor, found: Tensor) -> tuple[float, float, float]:
    """Return cosine, relative error and ratio of norms; NaN if float16 overflowed at every loss scale."""
    size, other = norm(expected).item(), norm(found).item()
    if not size * other > 0 or not math.isfinite(other):
        return math.nan, math.nan, math.nan
    product = (expected.view(-1, ALIGN) * found.view(-1, ALIGN)).sum(dim=1).double().sum().item()
    return product / (size * other), norm(found - expected).item() / size, other / size


def main() -> None:
    given = _arguments()
    runs = config.distillations(config.load_config(ROOT / "config.yaml", given.configfile))
    if not runs:
        raise UserError(f"--configfile {given.configfile}: expected guidance_scales or extra_runs, got neither")
    if given.prompts < 1:
        raise UserError(f"--prompts {given.prompts}: expected 1 or more")
    batches = read_captions(given.captions) if given.captions else [all_captions()]
    captions = [caption for batch in batches for caption in batch]
    rows = check_precision(
        runs[0], given.teacher, captions, given.prompts, given.precision, given.bins, given.warmup, given.from_state
    )
    print(to_markdown(rows), end="")
    if given.out:
        write(rows, given.out)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--configfile", type=Path, help="its first run's settings are used (default: config.yaml)")
    parser.add_argument("--teacher", type=Path, default=ROOT / "sid_core/data/shapes/assets/teacher")
    parser.add_argument("--captions", type=Path, help="prompts, one a line (default: all of the embedded ones)")
    parser.add_argument("--prompts", type=int, default=64, help="images of a gradient")
    parser.add_argument("--precision", nargs="+", default=["bfloat16", "float16"], help="compared with float32")
    parser.add_argument("--bins", type=int, default=8, help="of timesteps")
    parser.add_argument("--warmup", type=int, default=20, help="iterations in float32 before the comparison")
    parser.add_argument("--from-state", type=Path, help="a run's state folder to begin at, instead of warming up")
    parser.add_argument("--out", type=Path, help="folder for gradients.csv and gradients.md")
    return parser.parse_args()


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")

"""Time our iteration against the published loop's on the same work, on a CPU, at shapes size.

    python benchmarks/cpu_iteration.py [--rounds 5] [--iterations 4] [--threads 1]

Both do the iteration of METHOD (kappa 1.5, batch 32, float32) on the embedded teacher. The published way,
in its own structure (parts/published.py): garbage is collected before every iteration, every call of a network
tokenises and encodes its prompts again (and the empty prompt for each of them), x_0 comes from a scheduler
step per sample, NaNs are replaced parameter by parameter, Adam loops over parameters, and so does the EMA;
weights are contiguous. Runs alternate A B A B; the ratio of medians is the result. With the same draws both
give the same losses, which is checked first. What each habit costs is printed, the rest is the UNet's own
work.
"""

import argparse
import math
import statistics
import time
from types import SimpleNamespace

import torch
from diffusers import DDPMScheduler
from parts.published import DROPOUT, PublishedLoop
from torch import Tensor, nn

from sid_core.data.shapes import ASSETS, scenes
from sid_core.models.conditioning import PromptSet
from sid_core.models.devices import set_memory_format
from sid_core.models.scheduler import scheduler_config
from sid_core.models.teacher import latent_shape, load_backbone
from sid_core.models.text import TextEncoder
from sid_core.training.dry_run import make_run, make_settings
from sid_core.training.iteration import Trainer

BATCH, KAPPA, LR, T_INIT = 32, 1.5, 1e-4, 625
SETTINGS = make_settings(train_kimg=1.0, batch=BATCH, micro_batch=BATCH, lr=LR, t_init=T_INIT, ema_halflife_nimg=2000)


def published_loop(
    ours: Trainer, teacher: nn.Module, encoder: TextEncoder, captions: list[str], scheduler: DDPMScheduler
) -> PublishedLoop:
    """Make the published loop with the same networks and random inputs."""

    def draw(name: str) -> tuple[list[str], Tensor, Tensor, Tensor]:
        drawn = ours._draw(name, loop.iteration, BATCH, DROPOUT if name == "fake" else 0.0)
        pairs = zip(drawn.prompts.tolist(), drawn.dropped.tolist(), strict=True)
        return ["" if drop else captions[i] for i, drop in pairs], drawn.noises[0], drawn.eps, drawn.t

    settings = SimpleNamespace(
        micro_batches=1, batch=BATCH, kappa=KAPPA, lr=LR, t_init=T_INIT, ema_halflife_nimg=SETTINGS.ema_halflife_nimg
    )
    loop = PublishedLoop(teacher, scheduler, lambda prompts: encoder.encode(prompts).tokens, draw, "", settings)
    return loop


def seconds(step, iterations: int) -> float:
    started = time.perf_counter()
    for _ in range(iterations):
        step()
    return (time.perf_counter() - started) / iterations


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--iterations", type=int, default=4, help="per round and way")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)

    folder = ASSETS / "teacher"
    encoder, captions = TextEncoder.from_directory(folder), scenes.draw("train", 5000)[1]
    backbone = load_backbone(folder)
    set_memory_format(backbone.network, "float32", torch.device("cpu"))
    ours = Trainer(backbone, PromptSet(encoder, captions), latent_shape(folder), make_run(KAPPA), SETTINGS)
    config = {k: v for k, v in scheduler_config(folder).items() if not k.startswith("_")}
    scheduler = DDPMScheduler.from_config(config)
    published = published_loop(ours, load_backbone(folder).network, encoder, captions, scheduler)

    theirs = published.step()[0] / math.prod(ours.latent_shape)
    metrics = ours.step()
    print(f"losses of the first iteration: ours {metrics['fake_loss']:.6f}, published way {theirs:.6f}")
    assert abs(metrics["fake_loss"] - theirs) < 1e-4 * theirs, "the two do not compute the same loss"

    published.spent_s.clear()
    times: dict[str, list[float]] = {"ours": [], "published way": []}
    for _ in range(args.rounds):
        times["ours"].append(seconds(ours.step, args.iterations))
        times["published way"].append(seconds(published.step, args.iterations))
    print(
        f"\nbatch {BATCH}, kappa {KAPPA}, {args.threads} thread(s), torch {torch.__version__}; {args.rounds} rounds of {args.iterations}"
    )
    for name, values in times.items():
        print(
            f"{name:14s} {1000 * statistics.median(values):7.1f} ms an iteration (min {1000 * min(values):.1f}, max {1000 * max(values):.1f})"
        )
    for habit, spent_s in published.spent_s.most_common():
        print(f"    of it {1000 * spent_s / (args.rounds * args.iterations):7.1f} ms {habit}")
    print(f"ratio          {statistics.median(times['published way']) / statistics.median(times['ours']):7.2f}")


if __name__ == "__main__":
    main()

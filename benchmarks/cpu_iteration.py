"""Time our iteration against the published loop's on the same work, on a CPU, at shapes size.

    python benchmarks/cpu_iteration.py [--rounds 5] [--iterations 4] [--threads 1]

Both do the iteration of METHOD (kappa 1.5, batch 32, float32) on the embedded teacher. The published way,
written out here in its own structure: garbage is collected before every iteration, every call of a network
tokenises and encodes its prompts again (and the empty prompt for each of them), x_0 comes from a scheduler
step per sample, NaNs are replaced parameter by parameter, Adam loops over parameters, and so does the EMA;
weights are contiguous. Runs alternate A B A B; the ratio of medians is the result. With the same draws both
give the same losses, which is checked first. What each habit costs is printed, the rest is the UNet's own
work.
"""

import argparse
import copy
import gc
import statistics
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from diffusers import DDPMScheduler
from torch import Tensor, nn

from sid_core.data.shapes import ASSETS, scenes
from sid_core.models.conditioning import PromptSet
from sid_core.models.devices import set_memory_format
from sid_core.models.scheduler import scheduler_config
from sid_core.models.teacher import latent_shape, load_backbone
from sid_core.models.text import TextEncoder
from sid_core.training.dry_run import make_run, make_settings
from sid_core.training.iteration import EMA_RAMP, Trainer
from sid_core.training.randomness import Draw

BATCH, KAPPA, LR, T_INIT = 32, 1.5, 1e-4, 625
SETTINGS = make_settings(train_kimg=1.0, batch=BATCH, micro_batch=BATCH, lr=LR, t_init=T_INIT, ema_halflife_nimg=2000)


class PublishedWay:
    """The published loop's structure with the same networks and random inputs."""

    def __init__(
        self, ours: Trainer, teacher: nn.Module, encoder: TextEncoder, captions: list[str], scheduler: DDPMScheduler
    ):
        self.ours, self.teacher, self.encoder = ours, teacher, encoder
        self.captions, self.scheduler = captions, scheduler
        self.fake, self.generator, self.ema = (copy.deepcopy(teacher) for _ in range(3))
        self.optimizers = [
            torch.optim.Adam(net.parameters(), lr=LR, betas=(0.0, 0.999), eps=1e-8, foreach=False, fused=False)
            for net in (self.fake, self.generator)
        ]
        self.iteration = 0
        self.spent_s: Counter[str] = Counter()

    @contextmanager
    def timed(self, habit: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.spent_s[habit] += time.perf_counter() - started

    def encode(self, prompts: list[str]) -> Tensor:
        with self.timed("prompts encoded at every call"):
            return self.encoder.encode(prompts).tokens

    def sample(self, z: Tensor, prompts: list[str]) -> Tensor:
        t = torch.full((len(z),), T_INIT)
        x_t = self.scheduler.add_noise(torch.zeros_like(z), z, t)
        eps = self.generator(x_t, t, encoder_hidden_states=self.encode(prompts)).sample
        return self.scheduler.step(eps, T_INIT, x_t).pred_original_sample

    def guided_eps(self, unet: torch.nn.Module, x_t: Tensor, t: Tensor, prompts: list[str]) -> Tensor:
        context = torch.cat([self.encode([""] * len(prompts)), self.encode(prompts)])
        both = unet(torch.cat([x_t] * 2), torch.cat([t] * 2), encoder_hidden_states=context).sample
        uncond, cond = both.chunk(2)
        return uncond + KAPPA * (cond - uncond)

    def x0(self, eps: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        with self.timed("scheduler steps per sample"):
            steps = [self.scheduler.step(eps[i], t[i], x_t[i]).pred_original_sample for i in range(len(t))]
            return torch.stack(steps)

    def step(self) -> tuple[float, float]:
        with self.timed("garbage collection"):
            gc.collect()
        draws = (
            self.ours._draw("fake", self.ours.iteration, BATCH, 0.1),
            self.ours._draw("generator", self.ours.iteration, BATCH, 0.0),
        )
        losses = self.fake_half(draws[0]), self.generator_half(draws[1])
        halflife = min(SETTINGS.ema_halflife_nimg, EMA_RAMP * self.iteration * BATCH)
        beta = 0.5 ** (BATCH / max(halflife, 1e-8))
        with self.timed("Adam, NaNs and EMA in loops"), torch.no_grad():
            for p_ema, p in zip(self.ema.parameters(), self.generator.parameters(), strict=True):
                p_ema.copy_(p.lerp(p_ema, beta))
        self.iteration += 1
        return losses

    def fake_half(self, draw: Draw) -> float:
        prompts = [
            "" if drop else self.captions[i]
            for i, drop in zip(draw.prompts.tolist(), draw.dropped.tolist(), strict=True)
        ]
        with torch.no_grad():
            x_g = self.sample(draw.noises[0], prompts)
        self.fake.requires_grad_(True)
        eps_hat = self.guided_eps(self.fake, self.scheduler.add_noise(x_g, draw.eps, draw.t), draw.t, prompts)
        loss = ((eps_hat - draw.eps) ** 2).sum() / BATCH
        return self.update(loss, self.fake, self.optimizers[0]) / x_g[0].numel()

    def generator_half(self, draw: Draw) -> float:
        prompts = [self.captions[i] for i in draw.prompts.tolist()]
        self.generator.requires_grad_(True)
        x_g = self.sample(draw.noises[0], prompts)
        x_t = self.scheduler.add_noise(x_g, draw.eps, draw.t)
        y_fake, y_real = (
            self.x0(self.guided_eps(net, x_t, draw.t, prompts), x_t, draw.t) for net in (self.fake, self.teacher)
        )
        weight = (x_g - y_real).abs().mean(dim=[1, 2, 3], keepdim=True).detach().clip(min=1e-5)
        loss = ((y_real - y_fake) * (y_fake - x_g) / weight).sum() / BATCH
        return self.update(loss, self.generator, self.optimizers[1])

    def update(self, loss: Tensor, net: torch.nn.Module, optimizer: torch.optim.Optimizer) -> float:
        loss.backward()
        net.requires_grad_(False)
        with self.timed("Adam, NaNs and EMA in loops"):
            for p in net.parameters():
                torch.nan_to_num(p.grad, nan=0, posinf=1e5, neginf=-1e5, out=p.grad)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return loss.item()


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
    published = PublishedWay(ours, load_backbone(folder).network, encoder, captions, scheduler)

    theirs = published.step()
    metrics = ours.step()
    print(f"losses of the first iteration: ours {metrics['fake_loss']:.6f}, published way {theirs[0]:.6f}")
    assert abs(metrics["fake_loss"] - theirs[0]) < 1e-4 * theirs[0], "the two do not compute the same loss"

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

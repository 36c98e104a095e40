"""Iterate as the published training loop does, in its own structure, on any networks and draws.

Garbage is collected before every iteration, both branches of guidance are a batch of twice the size, x_0 comes from a scheduler step
per sample, NaNs are replaced parameter by parameter, Adam and the average loop over parameters. In float16 the weights are 16 bits,
Adam's and the average's too, and losses are float32.
"""

import copy
import gc
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace

import torch
from diffusers import DDPMScheduler
from torch import Tensor, nn

EMA_RAMP = 0.05
EMA_HALFLIFE_NIMG = 50_000
DROPOUT = 0.1
LARGEST = 1e4  # of a gradient; published: 1e5, which float16 does not have


class PublishedLoop:
    """The published loop's structure.

    Args:
        encode: returns embeddings (B, L, D) of prompts, called anew by every evaluation of a network.
        draw: returns prompts, z, eps and t of a micro-batch, for "fake" or "generator".
        empty: the empty prompt.
        settings: micro_batches, batch, kappa, lr, t_init, ema_halflife_nimg.
    """

    def __init__(
        self,
        teacher: nn.Module,
        scheduler: DDPMScheduler,
        encode: Callable[[list], Tensor],
        draw: Callable[[str], tuple[list, Tensor, Tensor, Tensor]],
        empty: object,
        settings: SimpleNamespace,
    ):
        self.teacher, self.scheduler, self.s = teacher, scheduler, settings
        self._encode, self.draw, self.empty = encode, draw, empty
        self.dtype = next(teacher.parameters()).dtype
        self.loss_scale = 0.01 if self.dtype == torch.float16 else 1.0  # gradients of a sum over a latent overflow
        self.fake, self.generator, self.ema = (copy.deepcopy(teacher) for _ in range(3))
        eps = 1e-6 if self.dtype == torch.float16 else 1e-8
        self.optimizers = [
            torch.optim.Adam(net.parameters(), lr=settings.lr, betas=(0.0, 0.999), eps=eps, foreach=False, fused=False)
            for net in (self.fake, self.generator)
        ]
        self.iteration = 0
        self.spent_s: Counter[str] = Counter()

    @contextmanager
    def timed(self, habit: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.spent_s[habit] += time.perf_counter() - started

    def encode(self, prompts: list) -> Tensor:
        with self.timed("prompts encoded at every call"):
            return self._encode(prompts).to(self.dtype)

    def sample(self, z: Tensor, prompts: list) -> Tensor:
        t = torch.full((len(z),), self.s.t_init, device=z.device)
        x_t = self.scheduler.add_noise(torch.zeros_like(z), z, t)
        eps = self.generator(x_t.to(self.dtype), t, encoder_hidden_states=self.encode(prompts)).sample.float()
        return self.scheduler.step(eps, self.s.t_init, x_t).pred_original_sample

    def guided_eps(self, unet: nn.Module, x_t: Tensor, t: Tensor, prompts: list) -> Tensor:
        context = torch.cat([self.encode([self.empty] * len(prompts)), self.encode(prompts)])
        both = unet(torch.cat([x_t] * 2).to(self.dtype), torch.cat([t] * 2), encoder_hidden_states=context).sample
        uncond, cond = both.float().chunk(2)
        return uncond + self.s.kappa * (cond - uncond)

    def x0(self, eps: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        with self.timed("scheduler steps per sample"):
            steps = [self.scheduler.step(eps[i], t[i], x_t[i]).pred_original_sample for i in range(len(t))]
            return torch.stack(steps)

    def step(self) -> tuple[float, float]:
        with self.timed("garbage collection"):
            gc.collect()
        fake_loss = self.phase("fake", self.fake, self.optimizers[0])
        generator_loss = self.phase("generator", self.generator, self.optimizers[1])
        halflife = min(self.s.ema_halflife_nimg, EMA_RAMP * self.iteration * self.s.batch)
        beta = 0.5 ** (self.s.batch / max(halflife, 1e-8))
        with self.timed("Adam, NaNs and EMA in loops"), torch.no_grad():
            for p_ema, p in zip(self.ema.parameters(), self.generator.parameters(), strict=True):
                p_ema.copy_(p.lerp(p_ema, beta))
        self.iteration += 1
        return fake_loss, generator_loss

    def phase(self, name: str, net: nn.Module, optimizer: torch.optim.Optimizer) -> float:
        """Update one network by all micro-batches; return the loss, summed over latents and averaged over images."""
        net.requires_grad_(True)
        total = 0.0
        for _ in range(self.s.micro_batches):
            loss = getattr(self, f"{name}_loss")(*self.draw(name)) / self.s.batch
            (self.loss_scale * loss).backward()
            total += loss.item()
        net.requires_grad_(False)
        with self.timed("Adam, NaNs and EMA in loops"):
            for p in net.parameters():
                torch.nan_to_num(p.grad, nan=0, posinf=LARGEST, neginf=-LARGEST, out=p.grad)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return total

    def fake_loss(self, prompts: list, z: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        self.generator.requires_grad_(False)
        x_g = self.sample(z, prompts).detach()
        eps_hat = self.guided_eps(self.fake, self.scheduler.add_noise(x_g, eps, t), t, prompts)
        return ((eps_hat - eps) ** 2).sum()

    def generator_loss(self, prompts: list, z: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        x_g = self.sample(z, prompts)
        x_t = self.scheduler.add_noise(x_g, eps, t)
        y_fake, y_real = (self.x0(self.guided_eps(net, x_t, t, prompts), x_t, t) for net in (self.fake, self.teacher))
        weight = (x_g - y_real).abs().mean(dim=[1, 2, 3], keepdim=True).detach().clip(min=1e-5)
        return ((y_real - y_fake) * (y_fake - x_g) / weight).sum()


def build(
    unet_factory: Callable[[], nn.Module], s: SimpleNamespace, dtype: torch.dtype, micro_batch: int
) -> Callable[[], object]:
    """Make a step for beside.py, with up to `micro_batch` images per backward pass; embeddings are looked up, not encoded."""
    micro_batch = min(micro_batch, s.batch)
    scheduler = DDPMScheduler(prediction_type=s.prediction_type, clip_sample=False)
    scheduler.alphas_cumprod = s.alphas_cumprod
    table = torch.cat([s.embeddings, s.empty.cpu()])  # the empty prompt is the last

    def encode(prompts: list[int]) -> Tensor:
        return table[prompts].to(s.device)

    def draw(name: str) -> tuple[list[int], Tensor, Tensor, Tensor]:
        prompts = torch.randint(len(table) - 1, (micro_batch,))
        if name == "fake":
            prompts[torch.rand(micro_batch) < DROPOUT] = len(table) - 1
        z, eps = torch.randn(2, micro_batch, *s.latent_shape, device=s.device)
        return prompts.tolist(), z, eps, torch.randint(s.t_min, s.t_max, (micro_batch,), device=s.device)

    settings = SimpleNamespace(
        micro_batches=s.batch // micro_batch, batch=s.batch, kappa=s.kappa, lr=s.lr, t_init=s.t_init,
        ema_halflife_nimg=EMA_HALFLIFE_NIMG,
    )  # fmt: skip
    teacher = unet_factory().to(dtype).eval().requires_grad_(False)
    return PublishedLoop(teacher, scheduler, encode, draw, len(table) - 1, settings).step

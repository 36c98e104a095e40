"""One iteration of SiD-LSG (arXiv 2406.01561, algorithm 1): the fake score learns the generator's samples, then the generator
moves them towards the teacher. This is the readable reference: three networks, two optimizers, one EMA.
"""

import copy
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ..errors import UserError
from ..method import Denoiser, Guidance, fake_score_loss, generator_loss, n_step
from ..models.text import PromptSet
from .randomness import Draw, draw, rng

if TYPE_CHECKING:
    from ..config import Distill, Run


class TrainingStopped(UserError):
    """The run cannot become a useful generator: non-finite numbers or an alarm."""


class Trainer:
    """The state of one distillation and the step that advances it.

    Attributes:
        teacher, fake_score, generator, ema: Denoisers; all start from the teacher's weights. `ema` is the product.
        iteration, nimg: iterations done and images seen by the generator.
    """

    def __init__(
        self, teacher: Denoiser, prompts: PromptSet, latent_shape: tuple[int, int, int], run: "Run", settings: "Distill"
    ):
        self.run, self.settings, self.prompts, self.latent_shape = run, settings, prompts, latent_shape
        self.guidance = Guidance(run.fake_train, run.fake_eval, run.teacher)
        self.teacher = teacher.eval().requires_grad_(False)
        self.fake_score, self.generator, self.ema = (copy.deepcopy(teacher) for _ in range(3))
        self.optimizers = {
            "fake": _adam(self.fake_score, settings, settings.fake_lr or settings.lr),
            "generator": _adam(self.generator, settings, settings.lr),
        }
        self.iteration = 0
        self.skips = {"fake": 0, "generator": 0}  # in a row
        self.skipped = 0  # in all

    @property
    def nimg(self) -> int:
        return self.iteration * self.settings.batch

    def step(self) -> dict[str, float]:
        """Do one iteration; return its metrics (means over the batch)."""
        self._set_learning_rates()
        metrics = self._half("fake") | self._half("generator")
        self._update_ema()
        self.iteration += 1
        return metrics

    @torch.no_grad()
    def grid_latents(self, count: int) -> Tensor:
        """Samples of the EMA generator for the first `count` training prompts and noises that never change, (count, C, H, W)."""
        noises = self._draw("grid", count, dropout=0.0).noises
        indices = torch.arange(count) % len(self.prompts)
        return n_step(self.ema, list(noises), self.settings.t_init, self.prompts(indices))

    # --- the two halves ----------------------------------------------------------------------------------------------

    def _half(self, half: str) -> dict[str, float]:
        """Accumulate one network's gradient over the micro-batches and update it; every half has draws of its own."""
        network, loss_of = {
            "fake": (self.fake_score, self._fake_score_loss),
            "generator": (self.generator, self._generator_loss),
        }[half]
        dropout = self.settings.prompt_dropout if half == "fake" and self._fake_is_guided() else 0.0
        batch = self._draw(half, self.settings.batch, dropout)
        network.requires_grad_(True)
        metrics: dict[str, float] = {}
        for start in range(0, self.settings.batch, self.settings.micro_batch):
            part = batch[start : start + self.settings.micro_batch]
            share = self.settings.micro_batch / self.settings.batch
            loss, values = loss_of(part)
            (loss * share).backward()
            for name, value in values.items():
                metrics[name] = metrics.get(name, 0.0) + share * value.item()
        network.requires_grad_(False)
        metrics[f"{half}_grad_norm"] = self._update(half, network, metrics[f"{half}_loss"])
        return metrics

    def _fake_is_guided(self) -> bool:
        return self.guidance.fake_train != 1 or self.guidance.fake_eval != 1

    def _fake_score_loss(self, part: Draw) -> tuple[Tensor, dict[str, Tensor]]:
        cond = self.prompts(part.prompts, part.dropped)
        with torch.no_grad():
            x_g = n_step(self.generator, list(part.noises), self.settings.t_init, cond)
        schedule = self.fake_score.schedule
        x_t = schedule.add_noise(x_g, part.eps, part.t)
        x0_hat = self.fake_score(x_t, part.t, cond, self.prompts.empty, self.guidance.fake_train)
        loss = fake_score_loss(x0_hat, x_g, schedule.snr(part.t))
        return loss, {"fake_loss": loss.detach() / x_g[0].numel()}  # per element: comparable over latent sizes

    def _generator_loss(self, part: Draw) -> tuple[Tensor, dict[str, Tensor]]:
        cond = self.prompts(part.prompts)
        x_g = n_step(self.generator, list(part.noises), self.settings.t_init, cond)
        x_t = self.teacher.schedule.add_noise(x_g, part.eps, part.t)
        # both scores are frozen and differentiated through
        f_teacher = self.teacher(x_t, part.t, cond, self.prompts.empty, self.guidance.teacher)
        f_fake = self.fake_score(x_t, part.t, cond, self.prompts.empty, self.guidance.fake_eval)
        loss = generator_loss(x_g, f_teacher, f_fake, self.run.alpha)
        with torch.no_grad():
            values = {
                "generator_loss": loss.detach(),
                "score_gap": (f_teacher - f_fake).square().mean().sqrt(),
                "teacher_residual": (f_teacher - x_g).abs().mean(),
                "fake_residual": (f_fake - x_g).abs().mean(),
                "latent_std": x_g.std(),
            }
        return loss, values

    def _draw(self, half: str, batch: int, dropout: float) -> Draw:
        # the grid's noise must not change as training goes on
        iteration = 0 if half == "grid" else self.iteration
        return draw(
            rng(self.run.seed, iteration, half),
            batch=batch,
            latent_shape=self.latent_shape,
            num_prompts=len(self.prompts),
            num_steps=self.run.num_steps,
            t_range=(self.settings.t_min, self.settings.t_max),
            dropout=dropout,
        )

    # --- updates -----------------------------------------------------------------------------------------------------

    def _set_learning_rates(self) -> None:
        """Linear decay from lr to lr_final over the run, the same relative decay for both networks."""
        s = self.settings
        factor = 1.0
        if s.lr_final is not None:
            factor += (s.lr_final / s.lr - 1) * min(self.nimg / (1000 * s.train_kimg), 1.0)
        for half, lr in (("fake", s.fake_lr or s.lr), ("generator", s.lr)):
            self.optimizers[half].param_groups[0]["lr"] = lr * factor

    def _update(self, half: str, network: nn.Module, loss: float) -> float:
        """Apply the accumulated gradient unless something is not finite; return the gradient's norm."""
        gradients = [p.grad for p in network.parameters() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients).item()
        total = loss + norm
        if total - total == 0:  # false for NaN and infinities
            self.optimizers[half].step()
            self.skips[half] = 0
        else:
            self._count_skip(half, loss, norm)
        self.optimizers[half].zero_grad()
        return norm

    def _count_skip(self, half: str, loss: float, norm: float) -> None:
        self.skipped += 1
        self.skips[half] += 1
        place = f"{'fake score' if half == 'fake' else 'generator'}, iteration {self.iteration} ({self.nimg:,} images)"
        what = f"{place}: loss {loss:g}, gradient norm {norm:g}"
        if self.settings.nonfinite == "stop":
            raise TrainingStopped(f"{what}; expected finite numbers. Lower distill.lr, or set distill.nonfinite: skip")
        if self.skips[half] >= self.settings.nonfinite_limit:
            raise TrainingStopped(
                f"{what}; {self.skips[half]} non-finite updates in a row (distill.nonfinite_limit). Lower distill.lr"
            )

    @torch.no_grad()
    def _update_ema(self) -> None:
        """beta = 0.5^(batch / half-life), half-life from the images seen before this iteration: the first update copies."""
        halflife = min(self.settings.ema_halflife_nimg, self.settings.ema_ramp * self.nimg)
        beta = 0.5 ** (self.settings.batch / max(halflife, 1e-8))
        torch._foreach_lerp_(list(self.ema.unet.parameters()), list(self.generator.unet.parameters()), 1 - beta)

    @torch.no_grad()
    def ema_drift(self) -> float:
        """|theta_ema - theta| / |theta|."""
        ema, theta = list(self.ema.unet.parameters()), list(self.generator.unet.parameters())
        difference = torch.nn.utils.get_total_norm(torch._foreach_sub(ema, theta))
        return (difference / torch.nn.utils.get_total_norm(theta)).item()


def _adam(network: nn.Module, settings: "Distill", lr: float) -> torch.optim.Optimizer:
    kind = torch.optim.AdamW if settings.weight_decay else torch.optim.Adam
    betas = (settings.adam_beta1, settings.adam_beta2)
    # fused: one kernel over all tensors, three times the speed of the loop on a CPU
    return kind(
        network.unet.parameters(),
        lr=lr,
        betas=betas,
        eps=settings.adam_eps,
        weight_decay=settings.weight_decay,
        fused=True,
    )

"""Define the steps common to all score distillation.

In turn, the fake score learns the distribution of the generator's samples, and the generator is updated by the
difference of the two scores. Losses are sums over channels and pixels and means over the batch, in float32: the
scores are close, and their difference is amplified by sigma / alpha (13 at t = 980).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..generator import Steps, n_step
from ..schedule import Schedule
from .adversarial import SHARE, Adversarial, adversarial_loss, discriminator_loss, logit_metrics

WEIGHT_FLOOR = 1e-5  # lower bound of the mean |x_g - f_teacher|, as published


@dataclass(frozen=True)
class Guidance:
    """Guidance scales: all equal and above 1 for long-short guidance (LSG), all 1 for no guidance; any sign."""

    fake_train: float  # kappa_1, in the fake score's own loss
    fake_eval: float  # kappa_2 = kappa_3, for the fake score in the generator's loss
    teacher: float  # kappa_4, for the teacher


@dataclass(frozen=True)
class Networks:
    """The three networks, f(x_t, t, cond, empty, kappa) -> x_0; all but the one in training are frozen."""

    teacher: nn.Module
    fake_score: nn.Module
    generator: nn.Module


@dataclass(frozen=True)
class Batch:
    """Inputs for B images; only text encoder and networks read the contents of `cond` and `empty`."""

    cond: Any  # embeddings of B prompts
    empty: Any  # embedding of the empty prompt, one row
    noises: Sequence[Tensor]  # of the generator's evaluations, each (B, C, H, W)
    eps: Tensor  # (B, C, H, W), the noise added to x_g
    t: Tensor  # (B,), the t of that noise
    nimg: int = 0  # images seen by the generator
    real: Tensor | None = None  # latents of real images (B, C, H, W), if the objective needs them
    real_cond: Any = None  # embeddings of their captions
    walked: int | None = None  # the generator's evaluation in training, 1 to K; None: the last


Metrics = dict[str, Tensor]  # scalars without gradient, means over the batch: micro-batches are averaged


@dataclass(frozen=True)
class Phase:
    """One update of one network within an iteration.

    Attributes:
        name: prefix of its metrics; `<name>_loss` is required.
        network: the network to update, 'fake_score' or 'generator'.
        backward: called as backward(networks, batch, factor); adds the gradient of factor * loss.
        drops_prompts: true if prompt dropout applies.
        stream: key of its random stream, to be set where several phases share a name.
    """

    name: str
    network: str
    backward: Callable[[Networks, Batch, float | Tensor], Metrics]
    drops_prompts: bool = False
    stream: str = ""


class ScoreDistillation:
    """An objective that needs estimates of x_0 by teacher and fake score.

    A subclass implements `generator_loss`, and overrides `phases` for another sequence of updates.

    Args:
        steps: the generator's network evaluations.
        alpha: a of SiD's loss.
        fake_updates: updates of the fake score before each of the generator ("two time-scale", arXiv 2405.14867).
        adversarial: adds a GAN on real images.
        real_uid: a and b of RealUID.
    """

    # false if the loss takes both scores as constants: no graph is kept
    needs_score_gradient = True

    def __init__(
        self,
        guidance: Guidance,
        steps: Steps,
        alpha: float = 1.0,
        fake_updates: int = 1,
        adversarial: Adversarial | None = None,
        real_uid: Any = None,
    ):
        self.guidance, self.steps, self.alpha, self.fake_updates = guidance, steps, alpha, fake_updates
        self.adversarial, self.real_uid = adversarial, real_uid

    @property
    def uses_real_images(self) -> bool:
        """Return whether batches of the fake score's phases need `real` and `real_cond`."""
        return self.adversarial is not None

    def generator_loss(self, x_g: Tensor, f_teacher: Tensor, f_fake: Tensor, t: Tensor, schedule: Schedule) -> Tensor:
        """Return the loss of samples x_g, given both guided estimates of them from x_t, each (B, C, H, W)."""
        raise NotImplementedError

    def phases(self) -> list[Phase]:
        """Return the updates of an iteration in order."""
        # a scale of 0 or 1 evaluates one branch: the other needs no training
        guided = not {self.guidance.fake_train, self.guidance.fake_eval} <= {0, 1}
        streams = ["", *(f"fake {i}" for i in range(1, self.fake_updates))]
        fake = [Phase("fake", "fake_score", self.fake_backward, guided, stream) for stream in streams]
        return [*fake, Phase("generator", "generator", self.generator_backward)]

    def network_passes(self, nimg: int = 0) -> float:
        """Count the network passes of an iteration per image, the unit of compute in which objectives are compared.

        A forward counts 1, a backward to weights and input 2, a backward to the input alone 1; guidance evaluates two
        branches unless its scale is 0 or 1. Half of a network counts half: the discriminator is its encoder. Where the
        number of the generator's evaluations is random, its mean counts.

        Args:
            nimg: images seen by the generator before the iteration; its GAN may start later than its training.
        """
        scales = (self.guidance.fake_train, self.guidance.fake_eval, self.guidance.teacher)
        fake_train, fake_eval, teacher = (1 if scale in (0, 1) else 2 for scale in scales)
        scores = (fake_eval + teacher) * (2 if self.needs_score_gradient else 1)
        fake = 3 * fake_train + self.real_passes()
        gan = self.adversarial is not None and nimg >= self.adversarial.start_nimg
        if gan and self.guidance.fake_eval == 0:
            scores += 1  # the encoder of the conditional branch, forward and backward
        elif gan and not self.needs_score_gradient:
            scores += fake_eval / 2  # backward through the encoder
        walked, trained = self.steps.mean_walked, self.steps.trained
        return self.fake_updates * (walked + fake) + walked + 2 * trained + scores

    def real_passes(self) -> float:
        """Count the passes of an update of the fake score that are due to real images."""
        if self.adversarial is None:
            return 0
        return 3 / 2 if self.guidance.fake_train else 3  # Zero-CFG: logits of samples need the other branch, too

    def total_passes(self, nimg: int) -> float:
        """Count the network passes of a training of `nimg` images."""
        start = nimg if self.adversarial is None else min(self.adversarial.start_nimg, nimg)
        return start * self.network_passes() + (nimg - start) * self.network_passes(start)

    def sample(self, networks: Networks, batch: Batch) -> Tensor:
        """Return the generator's samples x_g (B, C, H, W)."""
        return n_step(networks.generator, batch.noises, self.steps, batch.cond, batch.walked)

    def fake_backward(self, networks: Networks, batch: Batch, factor: float | Tensor) -> Metrics:
        """Add the gradient of the fake score's loss."""
        with torch.no_grad():
            x_g = self.sample(networks, batch)
        loss, metrics = self.fake_loss(networks.fake_score, batch, x_g)
        (loss * factor).backward()
        return metrics

    def fake_loss(self, fake_score: Any, batch: Batch, x_g: Tensor) -> tuple[Tensor, Metrics]:
        """Return the fake score's loss on samples x_g, with the discriminator's where there is one."""
        schedule = fake_score.schedule
        x_t = schedule.add_noise(x_g, batch.eps, batch.t)
        inputs, weight = (x_t, batch.t, batch.cond, batch.empty), schedule.fake_weight(batch.t)
        elements = x_g[0].numel()  # metrics are per element: comparable over latent sizes
        if self.adversarial is None:
            loss = fake_score_loss(fake_score(*inputs, self.guidance.fake_train), x_g, weight)
            return loss, {"fake_loss": loss.detach() / elements}
        x0_hat, fake = fake_score.with_logits(*inputs, self.guidance.fake_train)
        real = fake_score.logits(schedule.add_noise(batch.real, batch.eps, batch.t), batch.t, batch.real_cond)
        loss, gan = fake_score_loss(x0_hat, x_g, weight), discriminator_loss(real, fake, elements)
        metrics = {"fake_loss": loss.detach() / elements, "discriminator_loss": gan.detach() / elements}
        return loss + self.adversarial.discriminator_weight * gan, metrics | logit_metrics(real, fake)

    def generator_backward(self, networks: Networks, batch: Batch, factor: float | Tensor) -> Metrics:
        """Add the gradient of the generator's loss."""
        x_g = self.sample(networks, batch)
        # a leaf: the graphs of both scores are freed before backward through the generator
        leaf, schedule, logits = x_g.detach().requires_grad_(), networks.teacher.schedule, None
        gan = self.adversarial is not None and batch.nimg >= self.adversarial.start_nimg
        with torch.set_grad_enabled(self.needs_score_gradient or gan):
            x_t = schedule.add_noise(leaf, batch.eps, batch.t)
        inputs = (x_t, batch.t, batch.cond, batch.empty)
        with torch.set_grad_enabled(self.needs_score_gradient):
            f_teacher = networks.teacher(*inputs, self.guidance.teacher)
        # logits need a graph even where the scores are constants
        with torch.set_grad_enabled(self.needs_score_gradient or gan):
            if gan:
                f_fake, logits = networks.fake_score.with_logits(*inputs, self.guidance.fake_eval)
            else:
                f_fake = networks.fake_score(*inputs, self.guidance.fake_eval)
        f_fake = f_fake if self.needs_score_gradient else f_fake.detach()
        loss = total = self.generator_loss(leaf, f_teacher, f_fake, batch.t, schedule)
        if gan:
            weighted = adversarial_loss(logits, sample_weight(leaf, f_teacher), leaf[0].numel())
            total = SHARE * loss + SHARE * self.adversarial.weight * weighted
        (total * factor).backward()
        x_g.backward(leaf.grad)
        with torch.no_grad():
            x_g, f_teacher, f_fake = x_g.detach(), f_teacher.detach(), f_fake.detach()
            return {
                "generator_loss": loss.detach(),
                "teacher_residual": (f_teacher - x_g).abs().mean(),
                "fake_residual": (f_fake - x_g).abs().mean(),
                "gap_square": (f_teacher - f_fake).square().mean(),
                "latent": x_g.mean(),
                "latent_square": x_g.square().mean(),
            }

    def finish(self, metrics: Metrics) -> Metrics:
        """Convert a phase's means over the whole batch to logged metrics.

        Square roots and standard deviations cannot be averaged over micro-batches.
        """
        if "gap_square" in metrics:
            metrics["score_gap"] = metrics.pop("gap_square").sqrt()
            mean, square = metrics.pop("latent"), metrics.pop("latent_square")
            metrics["latent_std"] = (square - mean.square()).clamp(min=0).sqrt()
        return metrics


def fake_score_loss(x0_hat: Tensor, x_g: Tensor, weight: Tensor) -> Tensor:
    """Return weight |f_psi(x_t) - x_g|^2 (arXiv 2406.01561, section 3.2).

    Args:
        x0_hat: guided estimate by the fake score, (B, C, H, W).
        x_g: the generator's samples, without gradient.
        weight: `Schedule.fake_weight`, (B, 1, 1, 1).
    """
    return (weight * (x0_hat - x_g) ** 2).sum(dim=(1, 2, 3)).mean()


def sample_weight(x_g: Tensor, f_teacher: Tensor) -> Tensor:
    """Return w = 1 / mean |x_g - f_teacher| of each sample, (B, 1, 1, 1), without gradient."""
    return 1 / (x_g - f_teacher).detach().abs().mean(dim=(1, 2, 3), keepdim=True).clamp(min=WEIGHT_FLOOR)

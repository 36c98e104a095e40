"""One iteration of SiD-LSG (arXiv 2406.01561, algorithm 1): the fake score learns the generator's samples, then the generator
moves them towards the teacher. Three networks, two optimizers, one EMA.

Nothing in an iteration waits for a GPU: metrics and the verdict on non-finite numbers stay on the device until they are read.
"""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..method import DTYPES, Denoiser, Guidance, fake_score_loss, generator_loss, n_step
from .distributed import World
from .flat import SLICE, Layout, on_device, placed, row_norms, with_weights
from .health import TrainingStopped
from .precision import set_arithmetic
from .randomness import Draw, draw, rng
from .regions import checkpoint_blocks, compile_blocks
from .student import Gradient, Student

if TYPE_CHECKING:
    from ..config import Distill, Run
    from ..models.text import PromptSet

# of one half each: means over the batch, so that micro-batches and processes add up
FAKE = ("fake_loss",)
GENERATOR = ("generator_loss", "teacher_residual", "fake_residual", "gap_square", "latent", "latent_square")


EMA_RAMP = 0.05  # the averages' half-life is at most this fraction of the images seen


class Abandoned(Exception):
    """An iteration was left between two micro-batches. Updates made before stay; `step` goes on from there."""


class Trainer:
    """The state of one distillation and the step that advances it.

    Attributes:
        teacher, fake_score, generator, ema: Denoisers; all start from the teacher's weights. `ema` is the product, in float32;
            see `collect_ema`.
        students: the trained two, "fake" and "generator".
        own: the part of every vector that this process keeps; all of it, or with `distill.shard` a share.
        ema_weights: the averages, a vector (own).
        iteration, nimg: iterations done and images seen by the generator.
        fake_metrics: of an iteration whose first half is done, else None.
        abandon: asked before each micro-batch whether to leave the iteration.
    """

    def __init__(
        self,
        teacher: Denoiser,
        prompts: "PromptSet",
        latent_shape: tuple[int, int, int],
        run: "Run",
        settings: "Distill",
        world: World | None = None,
        held_out: int = 0,
        device: torch.device | None = None,
    ):
        """teacher: float32 weights, copied to where they belong. held_out: how many prompts at the end are not trained on. device:
        where to compute; by default where the teacher is. A teacher of the host needs no further memory of a GPU.
        """
        self.held_out = held_out
        self.run, self.settings, self.prompts, self.latent_shape = run, settings, prompts, latent_shape
        self.world = world or World()
        self.parts = self.world.parts(settings.batch, settings.micro_batch)
        self.guidance = Guidance(run.fake_train, run.fake_eval, run.teacher)
        self.device = device or next(teacher.parameters()).device
        set_arithmetic(settings.precision)
        teacher.eval().requires_grad_(False)
        teacher = Denoiser(teacher.unet, teacher.schedule.to(self.device), teacher.prediction_type)
        shared_out = settings.shard != "none" and self.world.size > 1
        self.layout = Layout(teacher.unet, self.world.size if shared_out else 1)
        self.own = self.world.share(self.layout.size) if shared_out else slice(0, self.layout.size)
        start = self.layout.gather(teacher.unet)
        rates = {"fake": settings.fake_lr or settings.lr, "generator": settings.lr}
        self.students = {
            half: Student(teacher, start, self.layout, self.own, settings, lr, self.device, self.world)
            for half, lr in rates.items()
        }
        self.ema_weights = placed(start[self.own], self.device, settings.offload in ("ema", "all"))
        del start
        self.gradient = Gradient(self.layout, self.device, self.world)
        self._ema_apart = shared_out or settings.offload in ("ema", "all")
        averages = self.gradient.views if self._ema_apart else self.layout.views(self.ema_weights)
        self.ema = Denoiser(with_weights(teacher.unet, averages), teacher.schedule, teacher.prediction_type)
        compute = {name: p.to(self.device, DTYPES[settings.precision]) for name, p in teacher.unet.named_parameters()}
        self.teacher = Denoiser(with_weights(teacher.unet, compute), teacher.schedule, teacher.prediction_type)
        self.fake_score, self.generator = (student.network for student in self.students.values())
        for network in (self.teacher, self.fake_score, self.generator):
            if settings.checkpointing:
                checkpoint_blocks(network.unet)
            if settings.compile and not (network is self.teacher and settings.shard == "all"):
                compile_blocks(network.unet)
        self.iteration = 0
        self.fake_metrics: dict[str, Tensor] | None = None
        self.abandon: Callable[[], bool] = lambda: False

    @property
    def nimg(self) -> int:
        return self.iteration * self.settings.batch

    @property
    def skipped(self) -> int:
        """Updates left out because of non-finite numbers; waits for the device."""
        return sum(student.guard.skipped for student in self.students.values())

    def step(self) -> dict[str, Tensor]:
        """Do one iteration, or what is left of it; return its metrics, means over the batch, scalars on the device.

        Raises:
            Abandoned: `abandon` said so.
        """
        if self.fake_metrics is None:
            self.fake_metrics = self._half("fake")
        metrics = self.fake_metrics | self._half("generator")
        self.fake_metrics = None
        self._update_ema()
        self.iteration += 1
        return metrics

    @torch.no_grad()
    def grid_latents(self, count: int) -> Tensor:
        """Samples of the EMA generator for the first `count` training prompts and noises that never change, (count, C, H, W)."""
        return torch.cat(list(self._samples("grid", torch.arange(count) % len(self.prompts))))

    @torch.no_grad()
    def held_out_latents(self) -> Iterator[Tensor]:
        """Samples of the EMA generator for the held-out prompts, in micro-batches; their noises never change."""
        yield from self._samples("proxy", torch.arange(len(self.prompts) - self.held_out, len(self.prompts)))

    def _samples(self, purpose: str, prompts: Tensor) -> Iterator[Tensor]:
        noises = self._draw(purpose, len(prompts), dropout=0.0).noises
        for start in range(0, len(prompts), self.settings.micro_batch):
            rows = slice(start, start + self.settings.micro_batch)
            z = list(noises[:, rows].to(self.device))
            yield n_step(self.ema, z, self.settings.t_init, self.prompts(prompts[rows]))

    @torch.no_grad()
    def collect_ema(self) -> None:
        """Make `ema` the averages; called by all processes, before it is used. What is offloaded or shared out is brought together in
        the gradient's memory, so it holds until the next step or save.
        """
        if self._ema_apart:
            self._gather(self.ema_weights)

    @torch.no_grad()
    def whole(self, vector: Tensor) -> Tensor:
        """All of a vector of which this process keeps its own part; where that is less, all processes together and in the gradient's
        memory.
        """
        return vector if len(vector) == self.layout.size else self._gather(vector)

    def _gather(self, vector: Tensor) -> Tensor:
        here = self.gradient.parameters
        here[self.own].copy_(vector)
        if len(vector) < len(here):
            self.world.gather_(here)
        return here

    def raise_if_stopped(self) -> None:
        """Raise TrainingStopped where non-finite numbers have reached their limit; waits for the device."""
        for half, student in self.students.items():
            stopped = student.guard.stopped()
            if stopped is None:
                continue
            iteration, loss, norm = stopped
            name = "fake score" if half == "fake" else "generator"
            place = f"{name}, iteration {iteration} ({iteration * self.settings.batch:,} images)"
            what = f"{place}: loss {loss:g}, gradient norm {norm:g}"
            if self.settings.nonfinite == "stop":
                raise TrainingStopped(
                    f"{what}; expected finite numbers. Lower distill.lr, or set distill.nonfinite: skip"
                )
            raise TrainingStopped(f"{what}; {student.guard.limit} non-finite updates in a row. Lower distill.lr")

    # --- the two halves ----------------------------------------------------------------------------------------------

    def _half(self, half: str) -> dict[str, Tensor]:
        """Accumulate one network's gradient over the micro-batches and update it; every half has draws of its own."""
        student = self.students[half]
        backward = {"fake": self._backward_fake, "generator": self._backward_generator}[half]
        dropout = self.settings.prompt_dropout if half == "fake" and self._fake_is_guided() else 0.0
        batch = self._draw(half, self.settings.batch, dropout)
        student.open(self.gradient)
        for rows in self.parts:
            if self.abandon():
                student.close()
                raise Abandoned
            if rows is self.parts[-1]:
                self.gradient.begin_sum()
            share = (rows.stop - rows.start) / self.settings.batch
            values = backward(batch[rows].to(self.device), share * student.guard.scale)
            self.gradient.metrics[: len(values)].add_(torch.stack(values), alpha=share)
        student.close()
        self.gradient.finish_sum()
        names = FAKE if half == "fake" else GENERATOR
        metrics = self._finish(dict(zip(names, self.gradient.metrics.clone().unbind(), strict=False)))
        size = student.update(self.gradient, metrics[f"{half}_loss"], self._lr(student), self.iteration)
        if self.device.type == "cpu":
            self.raise_if_stopped()
        return metrics | {f"{half}_grad_norm": size}

    def _fake_is_guided(self) -> bool:
        return self.guidance.fake_train != 1 or self.guidance.fake_eval != 1

    def _backward_fake(self, part: Draw, factor: float | Tensor) -> list[Tensor]:
        """Add the gradient of factor * loss; return the values FAKE."""
        cond = self.prompts(part.prompts, part.dropped)
        with torch.no_grad():
            x_g = n_step(self.generator, list(part.noises), self.settings.t_init, cond)
        schedule = self.fake_score.schedule
        x_t = schedule.add_noise(x_g, part.eps, part.t)
        x0_hat = self.fake_score(x_t, part.t, cond, self.prompts.empty, self.guidance.fake_train)
        loss = fake_score_loss(x0_hat, x_g, schedule.snr(part.t))
        (loss * factor).backward()
        return [loss.detach() / x_g[0].numel()]  # per element: comparable over latent sizes

    def _backward_generator(self, part: Draw, factor: float | Tensor) -> list[Tensor]:
        """Add the gradient of factor * loss; return the values GENERATOR."""
        cond = self.prompts(part.prompts)
        x_g = n_step(self.generator, list(part.noises), self.settings.t_init, cond)
        # both scores are frozen and differentiated through, to a leaf: their graphs are gone before the generator's is walked
        leaf = x_g.detach().requires_grad_()
        x_t = self.teacher.schedule.add_noise(leaf, part.eps, part.t)
        f_teacher = self.teacher(x_t, part.t, cond, self.prompts.empty, self.guidance.teacher)
        f_fake = self.fake_score(x_t, part.t, cond, self.prompts.empty, self.guidance.fake_eval)
        loss = generator_loss(leaf, f_teacher, f_fake, self.run.alpha)
        (loss * factor).backward()
        x_g.backward(leaf.grad)
        with torch.no_grad():
            x_g, f_teacher, f_fake = x_g.detach(), f_teacher.detach(), f_fake.detach()
            return [
                loss.detach(),
                (f_teacher - x_g).abs().mean(),
                (f_fake - x_g).abs().mean(),
                (f_teacher - f_fake).square().mean(),
                x_g.mean(),
                x_g.square().mean(),
            ]

    def _finish(self, metrics: dict[str, Tensor]) -> dict[str, Tensor]:
        """Root and spread from the means that add up over parts."""
        if "gap_square" in metrics:
            metrics["score_gap"] = metrics.pop("gap_square").sqrt()
            mean, square = metrics.pop("latent"), metrics.pop("latent_square")
            metrics["latent_std"] = (square - mean.square()).clamp(min=0).sqrt()
        return metrics

    def _draw(self, half: str, batch: int, dropout: float) -> Draw:
        # the noise of what is looked at must not change as training goes on
        iteration = self.iteration if half in self.students else 0
        return draw(
            rng(self.run.seed, iteration, half),
            batch=batch,
            latent_shape=self.latent_shape,
            num_prompts=len(self.prompts) - self.held_out,
            num_steps=self.run.num_steps,
            t_range=(self.settings.t_min, self.settings.t_max),
            dropout=dropout,
        )

    # --- updates -----------------------------------------------------------------------------------------------------

    def _lr(self, student: Student) -> float:
        """Linear decay from lr to lr_final over the run, the same relative decay for both networks."""
        s = self.settings
        factor = 1.0
        if s.lr_final is not None:
            factor += (s.lr_final / s.lr - 1) * min(self.nimg / (1000 * s.train_kimg), 1.0)
        return student.lr * factor

    @torch.no_grad()
    def _update_ema(self) -> None:
        """beta = 0.5^(batch / half-life), half-life from the images seen before this iteration: the first update copies."""
        halflife = min(self.settings.ema_halflife_nimg, EMA_RAMP * self.nimg)
        beta = 0.5 ** (self.settings.batch / max(halflife, 1e-8))
        theta = self.students["generator"].master
        for rows, (averages,) in on_device(self.device, self.settings.offload != "none", self.ema_weights):
            averages.lerp_(theta[rows].to(self.device), 1 - beta)

    @torch.no_grad()
    def ema_drift(self) -> float:
        """|theta_ema - theta| / |theta|; all processes together."""
        theta, gaps, sizes = self.students["generator"].master, [], []
        for start in range(0, len(theta), SLICE):
            a, b = (vector[start : start + SLICE].to(self.device) for vector in (self.ema_weights, theta))
            gaps.append(row_norms(a - b))
            sizes.append(row_norms(b))
        lengths = torch.stack([torch.linalg.vector_norm(torch.cat(parts)) for parts in (gaps, sizes)])
        if len(theta) < self.layout.size:
            self.world.sum_(lengths.square_())
            lengths.sqrt_()
        return (lengths[0] / lengths[1]).item()

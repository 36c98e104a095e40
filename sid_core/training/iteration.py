"""One iteration of a distillation: the phases of its objective in turn, then the average of the generator's weights.

Nothing in an iteration waits for a GPU: metrics and the verdict on non-finite numbers stay on the device until they are read.
"""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..errors import UserError
from ..method import DTYPES, OBJECTIVES, Batch, Guidance, Networks, Phase, n_step
from ..models.backbones import Backbone
from ..models.conditioning import Conditioning, PromptSet
from .blocks import checkpoint_blocks, compile_blocks
from .distributed import World
from .flat import SLICE, Layout, on_device, placed, row_norms, with_weights
from .health import TrainingStopped
from .optimizer import learning_rate
from .precision import set_arithmetic
from .randomness import Draw, draw, rng
from .trained_network import Gradient, TrainedNetwork

if TYPE_CHECKING:
    from ..config import Distill, Run
    from ..method.objectives import ScoreDistillation


EMA_RAMP = 0.05  # the averages' half-life is at most this fraction of the images seen


class Abandoned(Exception):
    """An iteration was left between two micro-batches. Updates made before stay; `step` goes on from there."""


class Trainer:
    """The state of one distillation and the step that advances it.

    Attributes:
        teacher, fake_score, generator, ema: Backbones; all start from the teacher's weights. `ema` is the product, in float32;
            see `collect_ema`.
        trained: the trained two, "fake_score" and "generator".
        phases: the updates of an iteration, by the run's objective.
        own: the part of every vector that this process keeps; all of it, or with `distill.shard` a shard.
        ema_weights: the averages, a vector (own).
        iteration, nimg: iterations done and images seen by the generator.
        phases_done, metrics: of an iteration that was abandoned after some of its phases; else 0 and empty.
        abandon: asked before each micro-batch whether to leave the iteration.
    """

    def __init__(
        self,
        teacher: Backbone,
        prompts: PromptSet,
        latent_shape: tuple[int, int, int],
        run: "Run",
        settings: "Distill",
        world: World | None = None,
        held_out: int = 0,
        device: torch.device | None = None,
    ):
        """Copy the teacher's weights to where they belong.

        Args:
            teacher: in float32.
            held_out: how many prompts at the end are not trained on.
            device: where to compute; by default where the teacher is. A teacher in host memory takes no further GPU memory.
        """
        self.held_out = held_out
        self.run, self.settings, self.prompts, self.latent_shape = run, settings, prompts, latent_shape
        self.world = world or World()
        self.parts = self.world.parts(settings.batch, settings.micro_batch)
        self.objective = make_objective(run, settings)
        self.phases = self.objective.phases()
        self.device = device or next(teacher.parameters()).device
        set_arithmetic(settings.precision)
        teacher.frozen()
        teacher.schedule.to(self.device)
        sharded = settings.shard != "none" and self.world.size > 1
        self.layout = Layout(teacher.network, self.world.size if sharded else 1, teacher.BACKWARD_ORDER)
        self.own = self.world.shard(self.layout.size) if sharded else slice(0, self.layout.size)
        start = self.layout.gather(teacher.network)
        rates = {"fake_score": settings.fake_lr or settings.lr, "generator": settings.lr}
        self.trained = {
            name: TrainedNetwork(teacher, start, self.layout, self.own, settings, lr, self.device, self.world)
            for name, lr in rates.items()
        }
        self.ema_weights = placed(start[self.own], self.device, settings.offload in ("ema", "all"))
        del start
        self.gradient = Gradient(self.layout, self.device, self.world)
        self._ema_apart = sharded or settings.offload in ("ema", "all")
        averages = self.gradient.views if self._ema_apart else self.layout.views(self.ema_weights)
        self.ema = teacher.with_network(with_weights(teacher.network, averages))
        dtype = DTYPES[settings.precision]
        compute = {name: p.to(self.device, dtype) for name, p in teacher.network.named_parameters()}
        self.teacher = teacher.with_network(with_weights(teacher.network, compute))
        self.fake_score, self.generator = (trained.backbone for trained in self.trained.values())
        for backbone in (self.teacher, self.fake_score, self.generator):
            if settings.checkpointing:
                checkpoint_blocks(backbone)
            if settings.compile and not (backbone is self.teacher and settings.shard == "all"):
                compile_blocks(backbone)
        self.iteration, self.phases_done = 0, 0
        self.metrics: dict[str, Tensor] = {}
        self.abandon: Callable[[], bool] = lambda: False

    @property
    def nimg(self) -> int:
        return self.iteration * self.settings.batch

    @property
    def skipped(self) -> int:
        """Updates left out because of non-finite numbers; waits for the device."""
        return sum(trained.guard.skipped for trained in self.trained.values())

    def step(self) -> dict[str, Tensor]:
        """Do one iteration, or what is left of it; return its metrics, means over the batch, scalars on the device.

        Raises:
            Abandoned: `abandon` said so.
        """
        for phase in self.phases[self.phases_done :]:
            self.metrics |= self._update(phase)
            self.phases_done += 1
        metrics, self.metrics, self.phases_done = self.metrics, {}, 0
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
        # iteration 0: the noise of images that are compared over time must not change
        noises = self._draw(purpose, 0, len(prompts), dropout=0.0).noises
        for start in range(0, len(prompts), self.settings.micro_batch):
            rows = slice(start, start + self.settings.micro_batch)
            z = list(noises[:, rows].to(self.device))
            yield n_step(self.ema, z, self.settings.t_init, self.prompts(prompts[rows]))

    @torch.no_grad()
    def collect_ema(self) -> None:
        """Make `ema` the averages; called by all processes, before it is used. What is offloaded or sharded is gathered in the
        gradient's memory, so it holds until the next step or save.
        """
        if self._ema_apart:
            self._gather(self.ema_weights)

    @torch.no_grad()
    def whole(self, vector: Tensor) -> Tensor:
        """Return all of a vector of which this process keeps its own part; where that is less, all processes together and in the
        gradient's memory.
        """
        return vector if len(vector) == self.layout.size else self._gather(vector)

    def _gather(self, vector: Tensor) -> Tensor:
        here = self.gradient.parameters
        here[self.own].copy_(vector)
        if len(vector) < len(here):
            self.world.all_gather_(here)
        return here

    def raise_if_stopped(self) -> None:
        """Raise TrainingStopped where non-finite numbers have reached their limit; waits for the device."""
        for name, trained in self.trained.items():
            stopped = trained.guard.stopped()
            if stopped is None:
                continue
            iteration, loss, norm = stopped
            images = iteration * self.settings.batch
            place = f"{name.replace('_', ' ')}, iteration {iteration} ({images:,} images)"
            what = f"{place}: loss {loss:g}, gradient norm {norm:g}"
            if self.settings.nonfinite == "stop":
                raise TrainingStopped(
                    f"{what}; expected finite numbers. Lower distill.lr, or set distill.nonfinite: skip"
                )
            raise TrainingStopped(f"{what}; {trained.guard.limit} non-finite updates in a row. Lower distill.lr")

    # --- updates -----------------------------------------------------------------------------------------------------

    def _update(self, phase: Phase) -> dict[str, Tensor]:
        """Accumulate one network's gradient over the micro-batches and update it; every phase has draws of its own."""
        trained, networks = self.trained[phase.network], Networks(self.teacher, self.fake_score, self.generator)
        dropout = self.settings.prompt_dropout if phase.drops_prompts else 0.0
        batch = self._draw(phase.stream or phase.name, self.iteration, self.settings.batch, dropout)
        totals = None
        trained.open(self.gradient)
        for rows in self.parts:
            if self.abandon():
                trained.close()
                raise Abandoned
            if rows is self.parts[-1]:
                self.gradient.begin_sum()
            share = (rows.stop - rows.start) / self.settings.batch
            inputs = self._inputs(batch[rows].to(self.device), phase)
            values = phase.backward(networks, inputs, share * trained.guard.scale)
            means = torch.stack(list(values.values()))
            totals = (torch.zeros_like(means) if totals is None else totals).add_(means, alpha=share)
        trained.close()
        self.gradient.finish_sum()
        self.world.all_reduce_(totals)
        metrics = self.objective.finish(dict(zip(values, totals.unbind(), strict=True)))
        lr = learning_rate(self.settings, trained.lr, self.nimg)
        size = trained.update(self.gradient, metrics[f"{phase.name}_loss"], lr, self.iteration)
        if self.device.type == "cpu":
            self.raise_if_stopped()
        return metrics | {f"{phase.name}_grad_norm": size}

    def _inputs(self, part: Draw, phase: Phase) -> Batch:
        cond: Conditioning = self.prompts(part.prompts, part.dropped if phase.drops_prompts else None)
        return Batch(cond, self.prompts.empty, list(part.noises), part.eps, part.t)

    def _draw(self, purpose: str, iteration: int, batch: int, dropout: float) -> Draw:
        return draw(
            rng(self.run.seed, iteration, purpose),
            batch=batch,
            latent_shape=self.latent_shape,
            num_prompts=len(self.prompts) - self.held_out,
            num_steps=self.run.num_steps,
            draw_t=lambda stream: self.teacher.schedule.draw(stream, batch, self.settings.t_min, self.settings.t_max),
            dropout=dropout,
        )

    @torch.no_grad()
    def _update_ema(self) -> None:
        """beta = 0.5^(batch / half-life), half-life from the images seen before this iteration: the first update copies."""
        halflife = min(self.settings.ema_halflife_nimg, EMA_RAMP * self.nimg)
        beta = 0.5 ** (self.settings.batch / max(halflife, 1e-8))
        theta = self.trained["generator"].master
        for rows, (averages,) in on_device(self.device, self.settings.offload != "none", self.ema_weights):
            averages.lerp_(theta[rows].to(self.device), 1 - beta)

    @torch.no_grad()
    def ema_drift(self) -> float:
        """|theta_ema - theta| / |theta|; all processes together."""
        theta, gaps, sizes = self.trained["generator"].master, [], []
        for start in range(0, len(theta), SLICE):
            a, b = (vector[start : start + SLICE].to(self.device) for vector in (self.ema_weights, theta))
            gaps.append(row_norms(a - b))
            sizes.append(row_norms(b))
        lengths = torch.stack([torch.linalg.vector_norm(torch.cat(parts)) for parts in (gaps, sizes)])
        if len(theta) < self.layout.size:
            self.world.all_reduce_(lengths.square_())
            lengths.sqrt_()
        return (lengths[0] / lengths[1]).item()


def make_objective(run: "Run", settings: "Distill") -> "ScoreDistillation":
    """Return the run's objective with its guidance scales.

    Raises:
        UserError: no such objective.
    """
    if run.objective not in OBJECTIVES:
        raise UserError(f"objective={run.objective}: expected {' or '.join(OBJECTIVES)}")
    guidance = Guidance(run.fake_train, run.fake_eval, run.teacher)
    return OBJECTIVES[run.objective](guidance, settings.t_init, run.alpha)

"""Compute one iteration: the phases of the objective in turn, then the average of the generator's weights.

An iteration never synchronises a GPU: metrics and checks for non-finite values remain on the device until logged.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..errors import UserError
from ..method import DTYPES, OBJECTIVES, Batch, Guidance, Networks, Phase, Steps, n_step
from ..method.schedule import NOISE_LEVELS
from ..models.backbones import Backbone
from ..models.conditioning import Conditioning, PromptSet
from ..models.lora import adapted, own_weights
from .blocks import checkpoint_blocks, compile_blocks
from .distributed import World
from .flat import SLICE, Layout, on_device, placed, row_norms, with_weights
from .health import TrainingStopped
from .optimizer import learning_rate
from .precision import set_arithmetic
from .randomness import Draw, draw, rng
from .trained_network import Gradient, TrainedNetwork

if TYPE_CHECKING:
    from ..config import Distill, DistillSettings, Run
    from ..method.objectives import ScoreDistillation
    from ..models.real_pairs import RealPairs


EMA_RAMP = 0.05  # upper bound of the average's half-life, as a fraction of the images seen


class IterationInterrupted(Exception):
    """An iteration ended between two micro-batches; `step` continues after the phases already done."""


class Trainer:
    """The state of one distillation and the step that advances it.

    Attributes:
        teacher, fake_score, generator, ema: Backbones, initialised from the teacher's weights. `ema` is the product,
            in float32; call `gather_ema` before use.
        trained: TrainedNetwork by name, "fake_score" and "generator".
        phases: the updates of an iteration, from the run's objective.
        own: slice of every vector that this rank stores: all of it, or with `distill.shard` its shard.
        ema_weights: the averages, a vector (own).
        iteration, nimg: iterations done and images seen by the generator.
        phases_done, metrics: of an interrupted iteration; else 0 and empty.
        should_interrupt: called before each micro-batch; true interrupts the iteration.
    """

    noise_levels = NOISE_LEVELS
    prompt_dropout = 0.1  # in the fake score's phase, where its guidance is not 1

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
        real: "RealPairs | None" = None,
    ):
        """Copy the teacher's weights to all networks.

        Args:
            teacher: in float32. In host memory it takes no further GPU memory.
            held_out: number of prompts, the last ones, that are not trained on.
            device: by default that of the teacher.
            real: pairs of real images and captions; needed if the objective uses them.

        Raises:
            UserError: the objective is unknown, or the teacher or the pairs do not fit it.
        """
        self.held_out = held_out
        self.run, self.settings, self.prompts, self.latent_shape = run, settings, prompts, latent_shape
        self.world = world or World()
        self.micro_batches = self.world.micro_batches(settings.batch, settings.micro_batch)
        self.objective, self.real = make_objective(run, settings), real
        if run.adversarial:
            teacher.check_discriminator()
        if self.objective.uses_real_images and len(real or ()) < settings.batch:
            raise UserError(
                f"{run.name}: uses {len(real or ())} real images, expected at least distill.batch={settings.batch}, better "
                "thousands. Fix: raise distill.real.pairs, or give --real-pairs"
            )
        self.phases = self.objective.phases()
        self.device = device or next(teacher.parameters()).device
        set_arithmetic(settings.precision)
        teacher.frozen()
        teacher.schedule.to(self.device)
        dtype = DTYPES[settings.precision]
        compute = {name: p.to(self.device, dtype) for name, p in teacher.network.named_parameters()}
        # embeddings of positions, which all networks share: 0.9 GB of Stable Diffusion 3.5
        compute |= {name: buffer.to(self.device) for name, buffer in teacher.network.named_buffers()}
        self.teacher = teacher.with_network(with_weights(teacher.network, compute))
        source = adapted(self.teacher, run.lora, rng(run.seed, 0, "lora")) if run.lora else self.teacher
        sharded = settings.shard != "none" and self.world.size > 1
        self.layout = Layout(source.network, self.world.size if sharded else 1, teacher.BACKWARD_ORDER)
        self.own = self.world.shard_slice(self.layout.size) if sharded else slice(0, self.layout.size)
        start = self.layout.gather((source if run.lora else teacher).network)
        factor = run.lora.lr_factor if run.lora else 1
        rates = {"fake_score": factor * (settings.fake_lr or settings.lr), "generator": factor * settings.lr}
        self.trained = {
            name: TrainedNetwork(source, start, self.layout, self.own, settings, lr, self.device, self.world)
            for name, lr in rates.items()
        }
        self.ema_weights = placed(start[self.own], self.device, settings.offload in ("ema", "all"))
        del start
        self.gradient = Gradient(self.layout, self.device, self.world)
        self._ema_apart = sharded or settings.offload in ("ema", "all")
        averages = self.gradient.views if self._ema_apart else self.layout.views(self.ema_weights)
        self.ema = source.with_network(with_weights(source.network, averages))
        self.fake_score, self.generator = (trained.backbone for trained in self.trained.values())
        for backbone in (self.teacher, self.fake_score, self.generator):
            if settings.checkpointing:
                checkpoint_blocks(backbone)
            # compiled code of the teacher's blocks would run for adapted ones too: it does not look at their hooks
            if settings.compile and not run.lora and not (backbone is self.teacher and settings.shard == "all"):
                compile_blocks(backbone)
        self.iteration, self.phases_done = 0, 0
        self.metrics: dict[str, Tensor] = {}
        self.should_interrupt: Callable[[], bool] = lambda: False

    @property
    def nimg(self) -> int:
        return self.iteration * self.settings.batch

    @property
    def network_passes(self) -> float:
        """Return the passes so far, as `ScoreDistillation.network_passes` counts them."""
        return self.objective.total_passes(self.nimg)

    @property
    def skipped(self) -> int:
        """Return the number of updates skipped because of non-finite values; synchronises the device."""
        return sum(trained.guard.skipped for trained in self.trained.values())

    def step(self) -> dict[str, Tensor]:
        """Run one iteration, or what IterationInterrupted left of it; return mean metrics on the device."""
        for phase in self.phases[self.phases_done :]:
            self.metrics |= self._update(phase)
            self.phases_done += 1
        metrics, self.metrics, self.phases_done = self.metrics, {}, 0
        if self.run.ida:
            self.trained["fake_score"].align(self.trained["generator"], self.run.ida)
        if self.objective.steps.objective == "mixture":
            loss, walked = metrics["generator_loss"], self._walked()
            metrics |= {f"generator_loss_k{walked}": loss, f"iterations_k{walked}": torch.ones_like(loss)}
        self._update_ema()
        self.iteration += 1
        return metrics

    @torch.no_grad()
    def grid_latents(self, count: int) -> Tensor:
        """Sample latents (count, C, H, W) by the EMA generator for the first prompts, with constant noises."""
        return torch.cat(list(self._samples("grid", torch.arange(count) % len(self.prompts))))

    @torch.no_grad()
    def held_out_latents(self) -> Iterator[Tensor]:
        """Sample the EMA generator for the held-out prompts, with constant noises; yield micro-batches."""
        yield from self._samples("proxy", torch.arange(len(self.prompts) - self.held_out, len(self.prompts)))

    def _samples(self, purpose: str, prompts: Tensor) -> Iterator[Tensor]:
        # iteration 0: samples are compared over time, so their noise must not change
        noises = self._draw(purpose, 0, len(prompts), dropout=0.0).noises
        for start in range(0, len(prompts), self.settings.micro_batch):
            rows = slice(start, start + self.settings.micro_batch)
            z = list(noises[:, rows].to(self.device))
            yield n_step(self.ema, z, self.objective.steps, self.prompts(prompts[rows]))

    @torch.no_grad()
    def gather_ema(self) -> None:
        """Copy the averages to `ema`; a collective, to be called before `ema` is used.

        Offloaded or sharded averages are gathered in the gradient's memory, valid until the next step or checkpoint.
        """
        if self._ema_apart:
            self._gather(self.ema_weights)

    def averages(self) -> dict[str, Tensor]:
        """Return the weights of `ema` by name, with LoRA those of its adapters; call `gather_ema` before."""
        return own_weights(self.ema.network.state_dict())

    @torch.no_grad()
    def full_vector(self, vector: Tensor) -> Tensor:
        """Return the full vector of this rank's shard; a collective, which gathers in the gradient's memory."""
        return vector if len(vector) == self.layout.size else self._gather(vector)

    def _gather(self, vector: Tensor) -> Tensor:
        here = self.gradient.parameters
        here[self.own].copy_(vector)
        if len(vector) < len(here):
            self.world.all_gather_(here)
        return here

    def raise_if_stopped(self) -> None:
        """Raise TrainingStopped if consecutive non-finite updates reached their limit; synchronises the device."""
        for name, trained in self.trained.items():
            stopped = trained.guard.stopped()
            if stopped is None:
                continue
            iteration, loss, norm = stopped
            images = iteration * self.settings.batch
            place = f"{name.replace('_', ' ')}, iteration {iteration} ({images:,} images)"
            event = f"{place}: loss {loss:g}, gradient norm {norm:g}"
            if self.settings.nonfinite == "stop":
                raise TrainingStopped(f"{event}. Fix: lower distill.lr, or set distill.nonfinite: skip")
            raise TrainingStopped(f"{event}; {trained.guard.limit} non-finite updates in a row. Lower distill.lr")

    # --- updates -----------------------------------------------------------------------------------------------------

    def _update(self, phase: Phase) -> dict[str, Tensor]:
        """Accumulate one network's gradient over the micro-batches of the phase's draws, and update it."""
        trained, networks = self.trained[phase.network], Networks(self.teacher, self.fake_score, self.generator)
        dropout = self.prompt_dropout if phase.drops_prompts else 0.0
        key = phase.stream or phase.name
        batch = self._draw(key, self.iteration, self.settings.batch, dropout)
        if self.objective.uses_real_images and phase.network == "fake_score":
            stream = rng(self.run.seed, self.iteration, f"real {key}")
            batch = replace(batch, real=torch.randint(len(self.real), (self.settings.batch,), generator=stream))
        totals, walked = None, self._walked()
        trained.enable_grad(self.gradient)
        for rows in self.micro_batches:
            if self.should_interrupt():
                trained.freeze()
                raise IterationInterrupted
            if rows is self.micro_batches[-1]:
                self.gradient.begin_sum()
            fraction = (rows.stop - rows.start) / self.settings.batch
            inputs = self._inputs(batch[rows].to(self.device), phase, walked)
            values = phase.backward(networks, inputs, fraction * trained.guard.scale)
            means = torch.stack(list(values.values()))
            totals = (torch.zeros_like(means) if totals is None else totals).add_(means, alpha=fraction)
        trained.freeze()
        self.gradient.finish_sum()
        self.world.all_reduce_(totals)
        metrics = self.objective.finish(dict(zip(values, totals.unbind(), strict=True)))
        lr = learning_rate(self.settings, trained.lr, self.nimg)
        size = trained.update(self.gradient, metrics[f"{phase.name}_loss"], lr, self.iteration)
        if self.device.type == "cpu":
            self.raise_if_stopped()
        return metrics | {f"{phase.name}_grad_norm": size}

    def _inputs(self, part: Draw, phase: Phase, walked: int) -> Batch:
        dropped = part.dropped if phase.drops_prompts else None
        cond: Conditioning = self.prompts(part.prompts, dropped)
        # dropped in the same rows: "" must not tell samples from real images
        real = (None, None) if part.real is None else self.real(part.real, dropped)
        return Batch(cond, self.prompts.empty, list(part.noises), part.eps, part.t, self.nimg, *real, walked=walked)

    def _walked(self) -> int:
        """Draw the generator's evaluation that this iteration trains, the same in all phases and processes."""
        count = self.objective.steps.count
        if self.objective.steps.objective == "last":
            return count
        return int(torch.randint(1, count + 1, (), generator=rng(self.run.seed, self.iteration, "walked")))

    def _draw(self, purpose: str, iteration: int, batch: int, dropout: float) -> Draw:
        return draw(
            rng(self.run.seed, iteration, purpose),
            batch=batch,
            latent_shape=self.latent_shape,
            num_prompts=len(self.prompts) - self.held_out,
            noises=self.objective.steps.noises,
            draw_t=lambda stream: self.teacher.schedule.draw(stream, batch, *self.noise_levels),
            dropout=dropout,
        )

    @torch.no_grad()
    def _update_ema(self) -> None:
        """Average with beta = 0.5^(batch / half-life).

        The half-life follows the images seen before this iteration, so the first update copies.
        """
        halflife = min(self.settings.ema_halflife_nimg, EMA_RAMP * self.nimg)
        beta = 0.5 ** (self.settings.batch / max(halflife, 1e-8))
        theta = self.trained["generator"].master
        for rows, (averages,) in on_device(self.device, self.settings.offload != "none", self.ema_weights):
            averages.lerp_(theta[rows].to(self.device), 1 - beta)

    @torch.no_grad()
    def ema_drift(self) -> float:
        """Return |theta_ema - theta| / |theta|; a collective."""
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
    """Return the run's objective with its guidance scales; a UserError names an unknown one."""
    if run.objective not in OBJECTIVES:
        raise UserError(f"objective={run.objective}: expected {' or '.join(OBJECTIVES)}")
    guidance = Guidance(run.fake_train, run.fake_eval, run.teacher)
    steps = Steps(settings.t_init, run.num_steps, run.step_noise, run.steps_objective)
    real = (run.adversarial, run.real_uid)
    return OBJECTIVES[run.objective](guidance, steps, run.alpha, run.fake_updates, *real)


def passes_an_image(settings: "DistillSettings") -> float:
    """Return the network passes of a training per image of its generator."""
    run, nimg = settings.run, round(1000 * settings.distill.train_kimg)
    return make_objective(run, settings.distill).total_passes(nimg) / nimg

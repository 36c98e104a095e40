"""Expand a configuration to its runs and baselines, by name."""

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal

from pydantic import Field, model_validator

from .blocks import (
    UNSCALED,
    Adversarial,
    Block,
    Count,
    Distill,
    ExtraRun,
    Finite,
    Fraction,
    Imported,
    Lora,
    Name,
    Positive,
    RealUID,
    Solver,
    StepNoise,
    StepsObjective,
    Strategy,
)

if TYPE_CHECKING:
    from .schema import Config

OBJECTIVES = {"sid": "SiD", "dmd": "DMD", "diff_instruct": "Diff-Instruct", "real_uid": "RealUID"}
REAL_IMAGES = "uses real images"  # in the label of a run, as most distillations use none
SOLVERS = {
    "ddim": "DDIM", "dpm-solver": "DPM-Solver++", "dpm-solver-karras": "DPM-Solver++ Karras", "flow-euler": "Euler",
}  # fmt: skip
GUIDED = {
    "lsg": "-LSG", "long": ", long guidance", "short": ", short guidance", "none": ", no guidance",
    "zero": ", Zero-CFG", "anti": ", Anti-CFG", "custom": "",
}  # fmt: skip


class Run(Block):
    """One generator: its four guidance scales (kappa_2 = kappa_3 share one), alpha, steps and seed."""

    name: Name
    strategy: Strategy
    objective: Name = "sid"
    fake_train: Finite
    fake_eval: Finite
    teacher: Positive
    alpha: Positive | None = Field(description="null: unknown, of an import")
    num_steps: Count
    of_steps: Count | None = Field(None, description="K of the generator, if this row samples it in fewer evaluations")
    steps_objective: StepsObjective = "last"
    step_noise: StepNoise = "fresh"
    fake_updates: Count = 1
    ida: Fraction = 0.0
    adversarial: Adversarial | None = None
    real_uid: RealUID | None = None
    lora: Lora | None = None
    seed: int | None = Field(description="null: unknown, of an import")

    @property
    def uses_real_images(self) -> bool:
        """Return whether the training sees real images; all others see the networks' own samples alone."""
        return self.adversarial is not None or (self.real_uid is not None and self.real_uid != RealUID(a=1, b=1))

    @property
    def scale(self) -> str:
        """Return the scale that names the strategy: kappa_1 of short and anti, kappa_4 of long, all of a custom one."""
        if self.strategy == "custom":
            return f"{self.fake_train:g}/{self.fake_eval:g}/{self.teacher:g}"
        return f"{self.fake_train if self.strategy in ('short', 'anti') else self.teacher:g}"

    @property
    def method(self) -> str:
        """Name what runs of several scales share: 'SiD-LSG', 'DMD, long guidance, 4 steps'."""
        return self._describe("")

    @property
    def label(self) -> str:
        """Name the run in tables, figures and MLflow: 'SiD-LSG κ = 1.5, seed 1'; a name of the user's own is appended."""
        setting = self.name.removesuffix(f"-seed{self.seed}") if self.seed else self.name
        setting = setting.removesuffix(f"-in{self.num_steps}") if self.of_steps else setting
        own = run_name(self.objective, self.strategy, self.scale, self.adversarial is not None, self.lora)
        return "".join(
            [
                self._describe("" if self.strategy in UNSCALED else f" κ = {self.scale}"),
                "" if setting in (own, f"{own}-{self.of_steps or self.num_steps}steps") else f" ({setting})",
                f", seed {self.seed}" if self.seed else "",
            ]
        )

    def _describe(self, scale: str) -> str:
        """Return objective, strategy, `scale`, steps, rank and the use of real images."""
        steps = f", {self.num_steps} step{'s' * (self.num_steps > 1)}" if self.num_steps > 1 or self.of_steps else ""
        of = f" of {self.of_steps}" if self.of_steps else ""
        real = ", GAN" * bool(self.adversarial) + f", {REAL_IMAGES}" * self.uses_real_images
        rank = f", rank {self.lora.rank}" if self.lora else ""
        return f"{OBJECTIVES.get(self.objective, self.objective)}{GUIDED[self.strategy]}{scale}{steps}{of}{rank}{real}"


def run_name(objective: str, strategy: str, scale: str | None, gan: bool = False, lora: Lora | None = None) -> str:
    """Return the folder of a run without a name of its own: 'lsg-1.5-rank16', 'dmd-long-1.75', 'zero-adversarial'."""
    scaled = [] if scale is None or strategy in UNSCALED else [scale]
    rank = [f"rank{lora.rank}"] if lora else []
    return "-".join([*([] if objective == "sid" else [objective]), strategy, *scaled, *["adversarial"] * gan, *rank])


def scale_name(scale: float) -> str:
    """Return the shortest exact decimal: 2.0 -> '2', 1.52 -> '1.52'. Two scales never share a name."""
    return repr(float(scale)).removesuffix(".0")


def runs(config: "Config") -> list[Run]:
    """List the distillations in the order of the tables."""
    return [settings.run for settings in distillations(config)]


def distillations(config: "Config") -> "list[DistillSettings]":
    """List each run with its settings."""
    return [settings for _, settings in _expand(config)]


def resamplings(config: "Config") -> "list[ResampleSettings]":
    """List the further rows of generators in fewer evaluations, with their settings."""
    result = []
    for extra, settings in _expand(config):
        run = settings.run
        seed = f"-seed{run.seed}" if run.seed else ""
        for count in extra.sample_steps:
            name = f"{run.name.removesuffix(seed)}-in{count}{seed}"
            row = run.model_copy(update={"name": name, "num_steps": count, "of_steps": run.num_steps})
            result.append(ResampleSettings(run=row, source=run.name))
    return result


def _expand(config: "Config") -> "Iterator[tuple[ExtraRun, DistillSettings]]":
    """Yield each run for each seed. Seed 0 has no suffix, so that adding seeds renames nothing."""
    wanted = [ExtraRun(strategy="lsg", scale=scale) for scale in config.guidance_scales] + list(config.extra_runs)
    for extra in wanted:
        scale = 1.0 if extra.scale is None else extra.scale  # short guidance may have a scale of 0
        fake_train, fake_eval, teacher = {
            "lsg": (scale, scale, scale),
            "long": (1.0, 1.0, scale),
            "short": (scale, 1.0, 1.0),
            "none": (1.0, 1.0, 1.0),
            "zero": (0.0, 0.0, 1.0),
            "anti": (scale, scale, 1.0),
            "custom": (extra.fake_train, extra.fake_eval, extra.teacher),
        }[extra.strategy]
        named = None if extra.scale is None else scale_name(scale)
        distill = config.distill
        adversarial = extra.adversarial or (None if extra.real_uid else distill.adversarial)
        num_steps = extra.num_steps or distill.num_steps
        lora = extra.lora or distill.lora
        suffix = "" if num_steps == distill.num_steps else f"-{num_steps}steps"
        base = extra.name or run_name(extra.objective, extra.strategy, named, adversarial is not None, lora) + suffix
        # of one evaluation, both are the same
        objective, noise = (
            (extra.steps_objective or distill.steps_objective, extra.step_noise or distill.step_noise)
            if num_steps > 1
            else ("last", "fresh")
        )
        if extra.train_kimg is not None:
            distill = distill.model_copy(update={"train_kimg": extra.train_kimg})
        for seed in config.seeds:
            run = Run(
                name=base if seed == 0 else f"{base}-seed{seed}", strategy=extra.strategy, objective=extra.objective,
                fake_train=fake_train, fake_eval=fake_eval, teacher=teacher, alpha=extra.alpha or distill.alpha,
                num_steps=num_steps, steps_objective=objective, step_noise=noise,
                fake_updates=extra.fake_updates or distill.fake_updates,
                ida=distill.ida if extra.ida is None else extra.ida,
                adversarial=adversarial, real_uid=extra.real_uid, lora=lora, seed=seed,
            )  # fmt: skip
            # settings of real images are part of the runs that use them alone
            own = {"adversarial": adversarial, "real": distill.real if run.uses_real_images else None, "lora": lora}
            settings = DistillSettings(run=run, distill=distill.model_copy(update=own))
            _check_real_images(settings)
            if lora and run.ida:
                raise ValueError(
                    f"run {run.name}: ida={run.ida:g}: expected 0 with lora, since an average of two networks' adapters is not "
                    "the adapter of their average. Fix: set ida: 0, or lora: null"
                )
            yield extra, settings


def _check_real_images(settings: "DistillSettings") -> None:
    """Raise a ValueError where a run's settings of real images do not fit each other."""
    run, distill = settings.run, settings.distill
    if run.uses_real_images and distill.real is None:
        what = "adversarial" if run.adversarial else "objective=real_uid"
        raise ValueError(
            f"run {run.name}: {what}: expected real images, got distill.real=null. Fix: distill: {{real: {{source: …}}}}"
        )
    if distill.real and distill.real.pairs and distill.real.pairs < distill.batch:
        raise ValueError(
            f"distill.real.pairs={distill.real.pairs}: expected at least distill.batch={distill.batch}, better thousands"
        )
    if run.adversarial and run.adversarial.start_nimg >= 1000 * distill.train_kimg:
        raise ValueError(
            f"run {run.name}: adversarial.start_nimg={run.adversarial.start_nimg}: expected less than the "
            f"{1000 * distill.train_kimg:,.0f} images of the training. Fix: start earlier, or remove adversarial"
        )


def embedded_captions(config: "Config") -> list[str]:
    """List the captions whose embeddings are stored on disk: `train`, `evaluation`, and `real`, those of real images."""
    trained = distillations(config)
    needed = {"train": trained, "evaluation": True, "real": any(settings.run.uses_real_images for settings in trained)}
    return [name for name, use in needed.items() if use and config.prompts.embeddings == "disk"]


def imported_run(imported: Imported) -> Run:
    """Return the run of a published generator; its seed and alpha are unknown."""
    scales = dict.fromkeys(("fake_train", "fake_eval", "teacher"), imported.scale)
    return Run(name=imported.name, strategy="lsg", **scales, alpha=None, num_steps=imported.num_steps, seed=None)


def generators(config: "Config") -> list[Run]:
    """List all generators: distillations, further rows in fewer evaluations, and imports."""
    fewer = [settings.run for settings in resamplings(config)]
    return runs(config) + fewer + [imported_run(imported) for imported in config.imports]


class Baseline(Block):
    """A row without distillation."""

    name: Name
    kind: Literal["teacher", "vae", "real"]
    solver: Solver | None = None
    steps: int = Field(0, description="of the solver")
    guidance_scale: Positive | None = None

    @property
    def nfe(self) -> int:
        """Count network evaluations per image: a guided step of the teacher evaluates both branches."""
        return self.steps if self.guidance_scale in (None, 1) else 2 * self.steps

    @property
    def label(self) -> str:
        """Name the row in tables and figures: 'teacher, DPM-Solver++ Karras, 8 steps, CFG 2'."""
        if self.kind == "teacher":
            steps = "1 step" if self.steps == 1 else f"{self.steps} steps"
            return f"teacher, {SOLVERS[self.solver]}, {steps}, CFG {scale_name(self.guidance_scale)}"
        return {"vae": "VAE reconstructions", "real": "real images"}[self.kind]


def baselines(config: "Config") -> list[Baseline]:
    """List the baselines: teacher by steps and scale, then VAE and real images."""
    block = config.baselines
    teacher = {"kind": "teacher", "solver": block.solver}
    prefix = f"teacher-{block.solver}-cfg"
    result = [
        Baseline(name=f"{prefix}{scale_name(scale)}-{steps}steps", steps=steps, guidance_scale=scale, **teacher)
        for steps in block.steps
        for scale in block.guidance_scales
    ]
    result += [Baseline(name=kind, kind=kind) for kind in ("vae", "real") if getattr(block, kind)]
    return result


def shards(config: "Config") -> list[str]:
    """List shard names '00000', '00001', …: shard k holds samples k * samples_per_shard onwards."""
    return [f"{k:05d}" for k in range(math.ceil(config.generate.samples / config.generate.samples_per_shard))]


class DistillSettings(Block):
    """Settings of a distillation; teacher and prompts are inputs."""

    run: Run
    distill: Distill

    @model_validator(mode="after")
    def _complete(self) -> "DistillSettings":
        if self.run.alpha is None or self.run.seed is None:
            raise ValueError("run: expected alpha and seed; only an import may leave them unknown")
        return self


class ResampleSettings(Block):
    """Settings of a row that samples the generator of the run `source` in fewer evaluations."""

    run: Run
    source: Name

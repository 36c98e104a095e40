"""Define the whole configuration and the checks between its blocks."""

import math
from functools import reduce
from typing import Annotated, Literal

from pydantic import Field, model_validator

from .blocks import (
    COCO2014_30K,
    PROTOCOLS,
    SEEDS,
    Baselines,
    Block,
    Distill,
    Evaluate,
    ExtraRun,
    Generate,
    Imported,
    Name,
    Plan,
    Positive,
    Prompts,
    Resources,
    Teacher,
    Tracking,
)
from .runs import generators

Preset = Literal["shapes", "sd15", "sd21-base", "sd21-768", "sdxl", "sd35-medium", "sana-600m", "flux-dev"]


class Config(Block):
    """The whole experiment."""

    experiment: Name
    preset: Preset | None = Field(None, description="fills in sizes, speeds and evaluation for a teacher of this kind")
    teacher: Teacher
    teachers: dict[Name, Teacher] = Field({}, description="further ones, by name, for `imports`")
    guidance_scales: list[Positive] = Field([], description="one LSG distillation each")
    extra_runs: list[ExtraRun] = Field([])
    imports: list[Imported] = Field([])
    seeds: list[Annotated[int, Field(ge=0)]] = Field([0], min_length=1)
    prompts: Prompts
    distill: Distill
    generate: Generate
    baselines: Baselines
    evaluate: Evaluate
    resources: Resources
    plan: Plan
    tracking: Tracking = Tracking()

    @model_validator(mode="after")
    def _consistent(self) -> "Config":
        distill, generate, evaluate, baselines = self.distill, self.generate, self.evaluate, self.baselines
        source = self.prompts.source
        if self.preset == "shapes" and not self.teacher.is_embedded:
            raise ValueError(
                f"preset=shapes: expected another one with teacher.source={self.teacher.source}: its sizes fit the embedded "
                "teacher. Fix: give the preset of the teacher's size, such as preset: sd15, in the same file"
            )
        names = [run.name for run in generators(self)]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"two runs would be called {name!r}. Fix: name extra_runs, give seeds and scales once")
        for extra in self.extra_runs:
            count = extra.num_steps or distill.num_steps
            if count > max(distill.t_init, 1):
                raise ValueError(f"num_steps={count}: expected at most t_init={distill.t_init}")
            if extra.sample_steps and (extra.steps_objective or distill.steps_objective) != "mixture":
                raise ValueError(
                    f"sample_steps={extra.sample_steps}: expected steps_objective: mixture; otherwise only the last "
                    "evaluation is trained. Fix: set it, or omit sample_steps"
                )
            divisors = [n for n in range(1, count) if count % n == 0]
            if not set(extra.sample_steps) <= set(divisors):
                listed = ", ".join(map(str, divisors)) or "none, of one"
                raise ValueError(f"sample_steps={extra.sample_steps}: expected divisors of num_steps={count}: {listed}")
        if not names:
            raise ValueError("nothing to distil: give guidance_scales, extra_runs or imports")
        for imported in self.imports:
            if imported.teacher is not None and imported.teacher not in self.teachers:
                raise ValueError(
                    f"imports.{imported.name}: teacher={imported.teacher}: expected a key of teachers"
                    f" ({', '.join(self.teachers) or 'none there'}), or null"
                )
        captions = 30_000 if self.prompts.evaluation == COCO2014_30K else self.prompts.evaluation
        if isinstance(captions, int) and captions < generate.samples:
            raise ValueError(
                f"generate.samples={generate.samples}: only prompts.evaluation={captions} captions; lower it"
            )
        if generate.seed + generate.samples > SEEDS // 2:
            raise ValueError(
                f"generate.seed={generate.seed}: expected seed + samples up to 2^31, the first of the validation "
                "split. Fix: choose a smaller seed"
            )
        if distill.real and distill.real.source == "embedded" and source != "embedded":
            raise ValueError(
                f"distill.real.source=embedded: expected prompts.source=embedded, got {source}, as scenes have "
                "captions of their own. Fix: give real images of captions like the prompts"
            )
        if generate.image_size not in (None, evaluate.image_size):
            raise ValueError(
                f"generate.image_size={generate.image_size}: expected null or evaluate.image_size="
                f"{evaluate.image_size}; an image must not be resized twice"
            )
        if evaluate.patches and (generate.image_size or math.inf) < (evaluate.feature_size or 0):
            raise ValueError(
                f"evaluate.patches=true: expected stored images of evaluate.feature_size={evaluate.feature_size} or "
                f"more, got generate.image_size={generate.image_size}. Fix: generate.image_size: null"
            )
        if evaluate.fid_teacher and not (baselines.steps and baselines.guidance_scales):
            fix = "give baselines.steps and baselines.guidance_scales"
            raise ValueError(f"evaluate.fid_teacher=true: expected a row of the teacher, got none. Fix: {fix}")
        if (baselines.vae or baselines.real) and source != "embedded":
            raise ValueError("baselines.vae, baselines.real: no real images of these captions. Fix: set both to false")
        return self

    @model_validator(mode="after")
    def _has_what_its_protocol_guarantees(self) -> "Config":
        guaranteed = PROTOCOLS.get(self.evaluate.protocol, {})
        found = {key: reduce(getattr, key.split("."), self) for key in guaranteed}
        apart = [f"{key}={guaranteed[key]} (got {found[key]})" for key in guaranteed if found[key] != guaranteed[key]]
        if apart:
            raise ValueError(
                f"evaluate.protocol={self.evaluate.protocol}: expected {', '.join(apart)}. Fix: set them so, or give the "
                "protocol a name of your own, such as evaluate.protocol: mine"
            )
        return self

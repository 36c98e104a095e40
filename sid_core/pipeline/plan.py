"""Estimate jobs, hours, GPU hours, memory and disk of each stage from the blocks `plan` and `resources`."""

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ..config import (
    COCO2014_30K,
    Config,
    DistillSettings,
    ExtraRun,
    JobResources,
    Plan,
    Run,
    baselines,
    distillations,
    embedded_captions,
    generators,
    runs,
    shards,
)
from ..errors import UserError
from ..storage.files import read_json
from ..storage.states import KEEP_STATES

MEASURED = Path("docs/performance-gpu.json")  # what `make gpu` wrote, beside config.yaml
FEATURE_KB = 16  # of a sample, at most: 2,048 features and two CLIP embeddings of 1,024, float32
REAL_PAIRS = 10_000  # of a source whose number is not in the settings
DMD_UPDATES = 5  # of the fake score for one of the generator (DMD2, arXiv 2405.14867)
TOGETHER = (1, 4, 8)  # GPUs of one distillation, to choose from
STATE_WEIGHTS = 5  # copies of the trained weights in a training state: three networks, two second moments
# adapters of one rank at 1 million parameters, grows by the power 2/3 (SD 1.5, SDXL, shapes: ± 40 %)
ADAPTER_MILLION = 0.016


@dataclass(frozen=True)
class Stage:
    """The jobs of one stage."""

    name: str
    jobs: int
    asks: JobResources
    hours: float  # of one job
    disk_gb: float  # of all jobs together

    @property
    def gpu_hours(self) -> float:
        return self.jobs * self.hours * (self.asks.gpu or 0)


Passes = Callable[[DistillSettings], float]  # network passes per image


def make_plan(config: Config, gpus_here: int = 0, passes: Passes | None = None) -> list[Stage]:
    """List the stages in their order; `gpus_here`: of a job where `resources` has null.

    The time of a training is estimated in proportion to its network passes; without `passes` all take as long as LSG.
    """
    plan, count, parts = config.plan, config.generate.samples, len(shards(config))
    asks = {name: block.model_copy(update={"gpu": block.gpus(gpus_here)}) for name, block in config.resources}
    trainings, sampled, others = distillations(config), generators(config), baselines(config)
    seen, scored, in_shard = config.evaluate.reference_samples, len(sampled) + len(others), count / parts
    samples_gb = count * plan.image_kb / 1e6
    stages = [
        Stage("teacher", 1 + len(config.teachers), asks["teacher"], 0.0, plan.download_gb),
        Stage("prompts", 1, asks["prompts"], 0.0, 0.0),
    ]
    for name in embedded_captions(config):
        prompts = _captions(config, name)
        hours = _hours(prompts, plan.evaluations_per_s)  # a text encoder is smaller than a teacher
        title = f"embed-prompts {name}" + ("" if prompts else " (unknown number)")
        stages.append(Stage(title, 1, asks["reference"], hours, prompts * plan.embedding_kb / 1e6))
    if any(settings.run.uses_real_images for settings in trainings):
        hours = _hours(_captions(config, "real"), plan.feature_images_per_s)
        stages.append(Stage("real pairs", 1, asks["reference"], hours, 0.0))
    # the run that `plan.train_images_per_s` is of: long-short guidance with the settings of `distill`
    lsg = config.model_copy(update={"guidance_scales": [], "extra_runs": [ExtraRun(strategy="lsg", scale=2)]})
    usual = passes and passes(distillations(lsg)[0])
    kinds: dict[tuple, list[DistillSettings]] = {}
    for run in trainings:
        kinds.setdefault((run.distill.train_kimg, passes and passes(run)), []).append(run)
    for (kimg, each), group in sorted(kinds.items()):
        hours = _hours(1000 * kimg, plan.train_images_per_s * max(asks["distill"].gpu or 0, 1))
        hours *= each / usual if passes else 1
        name = f"distill {kimg:,g} kimg" + (f" x {each:g} passes" if passes else "")
        disk_gb = (1 + KEEP_STATES * STATE_WEIGHTS) * sum(_trained_gb(plan, run.run) for run in group)
        stages.append(Stage(name, len(group), asks["distill"], hours, disk_gb))
    if jobs := len(config.imports):
        stages.append(Stage("import", jobs, asks["teacher"], 0.0, jobs * plan.unet_million * 4 / 1000))
    for steps, rows in sorted(Counter(run.num_steps for run in sampled).items()):
        # the first evaluation is part of the speed with the VAE
        hours = _hours(in_shard, plan.generate_images_per_s) + _hours((steps - 1) * in_shard, plan.evaluations_per_s)
        name = "generate" if steps == 1 else f"generate {steps} evaluations"
        stages.append(Stage(name, rows * parts, asks["generate"], hours, rows * samples_gb))
    for baseline in others:
        speed = plan.evaluations_per_s / baseline.nfe if baseline.nfe else plan.generate_images_per_s
        stages.append(Stage(f"generate {baseline.name}", parts, asks["generate"], _hours(in_shard, speed), samples_gb))
    hours = _hours(in_shard, plan.feature_images_per_s)
    return [
        *stages,
        Stage("reference", 1, asks["reference"], _hours(seen, plan.feature_images_per_s), seen * FEATURE_KB / 2e6),
        Stage("features", scored * parts, asks["features"], hours, scored * count * FEATURE_KB / 1e6),
        Stage("score", scored, asks["score"], 0.0, 0.0),
    ]


def _trained_gb(plan: Plan, run: Run) -> float:
    """Return the size of a generator's file: its weights, or its adapters alone."""
    adapters = run.lora.rank * ADAPTER_MILLION * plan.unet_million ** (2 / 3) if run.lora else math.inf
    return min(adapters, plan.unet_million) * 4 / 1000


def _captions(config: Config, name: str) -> int:
    """Count training or evaluation captions, or those of real images; 0 for a hub's, whose number is unknown."""
    from ..data.captions import read_captions  # needs numpy, and files take seconds

    if name == "real":
        return config.distill.real.pairs or REAL_PAIRS
    value = getattr(config.prompts, name)
    if isinstance(value, int) or value == COCO2014_30K:
        return value if isinstance(value, int) else 30_000
    if config.prompts.source == "hub" and name == "train":
        return 0
    member = config.prompts.member if name == "train" else None
    return sum(map(len, read_captions(value, config.prompts.column, member)))


def with_measured_speeds(plan: Plan, path: Path = MEASURED) -> Plan:
    """Replace estimated throughputs by those that `make gpu` measured with a UNet of this size, if there are any."""
    if "estimated" not in plan.speeds or not path.is_file():
        return plan
    measured = read_json(path)
    try:
        if measured["unet_million"] != plan.unet_million:
            return plan
        found = {name: float(speed) for name, speed in measured["speeds"].items()}
        origin = f"{measured['device']}, measured on {measured['date']} ({measured['settings']})"
        if absent := [name for name in Plan.model_fields if name.endswith("_per_s") and name not in found]:
            origin += f", but {', '.join(absent)}: {plan.speeds}"
        return Plan(**plan.model_dump() | found | {"speeds": origin})
    except (AttributeError, TypeError, ValueError) as error:
        raise UserError(f"{path}: expected what `make gpu` writes, got {error!r}. Fix: rerun or remove it") from None


def to_text(config: Config, gpus_here: int = 0, passes: Passes | None = None) -> str:
    """Return the plan as a table for the terminal."""
    stages = make_plan(config, gpus_here, passes)
    width = max(34, *(len(stage.name) for stage in stages))
    total_h, gpu_h = sum(stage.jobs * stage.hours for stage in stages), sum(stage.gpu_hours for stage in stages)
    lines = [
        f"plan of {config.experiment} (speeds of config `plan`: {config.plan.speeds}; limits from `resources`)",
        f"{'stage':{width}s}  jobs  GPUs   memory  time each  GPU hours      disk  limit",
        *(
            f"{stage.name:{width}s} {stage.jobs:5d} {stage.asks.gpu or 0:5d} {stage.asks.mem_mb / 1000:5.0f} GB "
            f"{_duration(stage.hours):>10s} {stage.gpu_hours:10,.1f} {stage.disk_gb:6,.1f} GB {stage.asks.runtime:>6s}"
            for stage in stages
        ),
        f"{'all':{width}s} {sum(stage.jobs for stage in stages):5d} {'':5s} {'':8s} {_duration(total_h):>10s} "
        f"{gpu_h:10,.1f} {sum(stage.disk_gb for stage in stages):6,.1f} GB",
    ]
    trained_h = sum(stage.gpu_hours for stage in stages if stage.name.startswith("distill "))
    if trained_h:
        times = (f"{_duration(trained_h / gpus)} on {gpus}" for gpus in TOGETHER)
        lines.append(f"distillations in sequence: {', '.join(times)} GPUs, if n GPUs train n times as fast")
    sources = {"reference": config.evaluate.reference}
    sources |= {key: network.source for key, network in config.evaluate.networks().items()}
    embedded = ", ".join(f"evaluate.{key}" for key, source in sources.items() if source == "embedded")
    if config.prompts.source != "embedded" and embedded:
        note = "embedded, trained on shapes; their scores of other captions mean nothing (docs/how-to/own-prompts.md)"
        lines.append(f"note: {embedded}: {note}")
    lines += [
        f"note: {run.name}: fake_updates: {run.fake_updates}; published for dmd are {DMD_UPDATES}, for Stable Diffusion 1.5 10, "
        f"as a fake score that lags behind makes training unstable. Fix: fake_updates: {DMD_UPDATES}, each costs 4 passes"
        for run in runs(config)
        if run.objective == "dmd" and run.fake_updates < DMD_UPDATES
    ]
    return "\n".join(lines)


def _duration(hours: float) -> str:
    if hours == 0:
        return "minutes"
    if hours < 1:
        return f"{60 * hours:.1f} min"
    return f"{hours:.1f} h" if hours < 48 else f"{hours / 24:.1f} d"


def _hours(count: float, per_s: float) -> float:
    return count / per_s / 3600

"""Every job of an experiment and the files it is known by."""

from dataclasses import dataclass
from pathlib import Path

from ...config import Config, baselines, distillations, shards
from ...storage.files import sidecar
from ..paths import Results, teacher_name


@dataclass(frozen=True)
class Job:
    """One job of the graph. Paths are below results/EXPERIMENT, `stage` is the subcommand, `kimg` a distillation's length."""

    stage: str
    name: str
    output: str
    log: str
    benchmark: str | None
    kimg: float = 1.0


def jobs(config: Config) -> list[Job]:
    """List every job in the order of the graph."""
    below = Results(Path())

    def job(stage: str, log: str, output: Path, name: str = "", kimg: float = 1.0) -> Job:
        measured = None if stage in ("tracking-init", "track") else str(below.benchmark(log))
        return Job(stage, name, str(output), str(below.log(log)), measured, kimg)

    found = [job("tracking-init", "tracking_init", below.store)]
    for name in (None, *config.teachers):
        found.append(job("teacher", teacher_name(name), below.teacher(name) / "manifest.json"))
    found.append(job("prompts", "prompts", below.prompts))
    found.append(job("extractors", "extractors", below.reference().networks))
    found.append(job("reference", "reference", below.reference().record))
    if config.distill.proxy_samples:
        found.append(job("reference", "watch", below.reference("watch").record, "watch"))
    distilled = {settings.run.name: settings.distill.train_kimg for settings in distillations(config)}
    imported = [imported.name for imported in config.imports]
    for name, kimg in distilled.items():
        found.append(job("distill", f"distill/{name}", below.run(name).manifest, name, kimg))
    for name in imported:
        found.append(job("import-official", f"import/{name}", below.run(name).manifest, name))
    sampled = [("generate", "runs", name) for name in [*distilled, *imported]]
    sampled += [("generate-baseline", "baselines", baseline.name) for baseline in baselines(config)]
    for stage, kind, name in sampled:
        for part in shards(config):
            record = sidecar(below.row(kind, name).samples(part))
            found.append(job(stage, f"generate/{name}.{part}", record, f"{name} {part}"))
    for _, kind, name in sampled:
        for part in shards(config):
            record = sidecar(below.row(kind, name).features(part))
            found.append(job("features", f"features/{kind}/{name}.{part}", record, f"{name} {part}"))
    for _, kind, name in sampled:
        found.append(job("score", f"score/{kind}/{name}", below.row(kind, name).score, name))
    found += [job("pairs", "pairs", below.pairs), job("report", "compare", below.report)]
    return [*found, job("track", "track", below.mirrored)]

"""List every job of an experiment and its files."""

from dataclasses import dataclass
from pathlib import Path

from ...config import Config, baselines, distillations, embedded_captions, resamplings, runs, shards
from ...storage.files import sidecar
from ..paths import Results, teacher_name
from ..rules import RULES


@dataclass(frozen=True)
class Job:
    """One job. Paths are below results/EXPERIMENT, `stage` is the subcommand, `kimg` a distillation's length, `method` its name."""

    stage: str
    name: str
    output: str
    log: str
    benchmark: str
    kimg: float = 1.0
    method: str = ""


def jobs(config: Config) -> list[Job]:
    """List every job in the order of the graph."""
    below = Results(Path())
    found = []

    def add(rule: str, output: Path, title: str = "", kimg: float = 1.0, method: str = "", /, **wildcards: str) -> None:
        log = RULES[rule].log.format(**wildcards)
        paths = (str(path) for path in (output, below.log(log), below.benchmark(log)))
        found.append(Job(rule.replace("_", "-"), title, *paths, kimg, method))

    add("tracking_init", below.store)
    for name in (None, *config.teachers):
        add("teacher", below.provenance(name), teacher=teacher_name(name))
    add("prompts", below.prompts)
    if any(run.uses_real_images for run in runs(config)):
        add("real_pairs", below.real_pairs)
    for name in embedded_captions(config):
        add("embed_prompts", below.embeddings(name), name, captions=name)
    add("evaluation_networks", below.reference("reference").networks)
    add("reference", below.reference("reference").record, reference="reference")
    if config.distill.proxy_samples:
        add("reference", below.reference("watch").record, "watch", reference="watch")
    distilled = {settings.run.name: settings for settings in distillations(config)}
    imported = [imported.name for imported in config.imports]
    resampled = [settings.run.name for settings in resamplings(config)]
    for name, settings in distilled.items():
        add("distill", below.run(name).record, name, settings.distill.train_kimg, settings.run.method, run=name)
    for name in [*imported, *resampled]:
        add("import_official" if name in imported else "resample", below.run(name).record, name, run=name)
    sampled = [("generate", "runs", name) for name in [*distilled, *resampled, *imported]]
    sampled += [("generate_baseline", "baselines", baseline.name) for baseline in baselines(config)]
    for rule, kind, name in sampled:
        for shard in shards(config):
            record = sidecar(below.row(kind, name).samples(shard))
            add(rule, record, f"{name} {shard}", **{"run" if kind == "runs" else "name": name, "shard": shard})
    for _, kind, name in sampled:
        for shard in shards(config):
            record = sidecar(below.row(kind, name).features(shard))
            add("features", record, f"{name} {shard}", kind=kind, name=name, shard=shard)
    for _, kind, name in sampled:
        add("score", below.row(kind, name).score, name, kind=kind, name=name)
    add("pairs", below.pairs)
    add("report", below.report)
    add("track", below.mirrored)
    return found

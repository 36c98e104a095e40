"""Every job of an experiment and the files it is known by, as the rules of workflow/rules name them."""

from dataclasses import dataclass

from ...config import Config, baselines, distillations, shards


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
    """Every job in the order of the graph; files are named as in workflow/rules."""

    def job(stage: str, log: str, output: str, name: str = "", kimg: float = 1.0) -> Job:
        measured = None if stage in ("tracking-init", "track") else f"benchmarks/{log}.tsv"
        return Job(stage, name, output, f"logs/{log}.log", measured, kimg)

    distilled = {settings.run.name: settings.distill.train_kimg for settings in distillations(config)}
    imported = [imported.name for imported in config.imports]
    sampled = [("generate", "runs", name) for name in [*distilled, *imported]]
    compared = [("generate-baseline", "baselines", baseline.name) for baseline in baselines(config)]
    parts = shards(config)
    teachers = ["teacher", *(f"teachers/{name}" for name in config.teachers)]
    found = [job("tracking-init", "tracking_init", "state/tracking.json")]
    found += [job("teacher", name, f"{name}/manifest.json") for name in teachers]
    found += [job("prompts", "prompts", "prompts/manifest.json")]
    found += [job("extractors", "extractors", "reference/extractors.json")]
    found += [job("reference", "reference", "reference/features.json")]
    if config.distill.proxy_samples:
        found += [job("reference", "watch", "watch/features.json", "watch")]
    for stage, log, names in (("distill", "distill", distilled), ("import-official", "import", imported)):
        for name in names:
            kimg = distilled.get(name, 1.0)
            found.append(job(stage, f"{log}/{name}", f"runs/{name}/generator/manifest.json", name, kimg))
    for stage, kind, name in sampled + compared:
        for part in parts:
            found.append(job(stage, f"generate/{name}.{part}", f"{kind}/{name}/samples/{part}.json", f"{name} {part}"))
    for _, kind, name in sampled + compared:
        for part in parts:
            log, output = f"features/{kind}/{name}.{part}", f"{kind}/{name}/features/{part}.json"
            found.append(job("features", log, output, f"{name} {part}"))
    found += [
        job("score", f"score/{kind}/{name}", f"{kind}/{name}/score.json", name) for _, kind, name in sampled + compared
    ]
    found += [job("pairs", "pairs", "pairs.csv"), job("report", "compare", "report.html")]
    return [*found, job("track", "track", "tracking.json")]

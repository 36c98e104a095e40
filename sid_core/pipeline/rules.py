"""List the rules that call a subcommand: name of the logs, resources, and the code that the result depends on."""

from dataclasses import dataclass
from string import Formatter

from ..config import JobResources


@dataclass(frozen=True)
class Rule:
    """One rule; its subcommand has the same name, with - for _."""

    log: str  # below logs/ and benchmarks/, with the rule's wildcards
    asks: str | JobResources  # key of `resources` in the config, or the same for all experiments
    code: str | None = None  # the module that makes the result

    @property
    def wildcards(self) -> list[str]:
        """Return the names of the wildcards."""
        return [name for _, name, _, _ in Formatter().parse(self.log) if name]


def _small(mem_mb: int, runtime: str) -> JobResources:
    return JobResources(gpu=0, mem_mb=mem_mb, runtime=runtime)


RULES = {
    "tracking_init": Rule("tracking_init", _small(2000, "10m")),
    "teacher": Rule("{teacher}", "teacher", "models.teacher"),
    "prompts": Rule("prompts", "prompts", "data.prompts"),
    "real_pairs": Rule("real_pairs", "reference", "models.encode_pairs"),
    "embed_prompts": Rule("embed_prompts/{captions}", "reference", "models.embeddings"),
    "evaluation_networks": Rule("evaluation_networks", "teacher", "evaluation.networks.weights"),
    "reference": Rule("{reference}", "reference", "evaluation.features"),
    "distill": Rule("distill/{run}", "distill", "training.run"),
    "import_official": Rule("import/{run}", "teacher", "models.convert.official"),
    "resample": Rule("resample/{run}", _small(2000, "30m"), "models.generator"),
    "generate": Rule("generate/{run}.{shard}", "generate", "sampling.generation"),
    "generate_baseline": Rule("generate/{name}.{shard}", "generate", "sampling.generation"),
    "features": Rule("features/{kind}/{name}.{shard}", "features", "evaluation.features"),
    "score": Rule("score/{kind}/{name}", "score", "evaluation.scoring"),
    "pairs": Rule("pairs", _small(1000, "10m"), "evaluation.pairs"),
    "report": Rule("report", _small(4000, "30m"), "report"),
    "track": Rule("track", _small(2000, "1h"), "tracking"),
}

"""Define every path under results/ once. Names may be Snakemake's wildcards: `results.run("{run}").score` is a rule's pattern."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ..storage.states import ENDED


def _below(path: str) -> property:
    return property(lambda self: self.folder / path)


def _each(path: str, kind: Callable = Path) -> Callable:
    return lambda self, name: kind(self.folder / path.format(name))


@dataclass(frozen=True)
class Row:
    """Files of a run or a baseline: a row of the table."""

    folder: Path
    settings = _below("settings.yaml")
    generation = _below("generate.yaml")
    generator = _below("generator")
    record = _below("generator/generator.json")
    training = _below("training.jsonl")
    grids = _below("grids")
    score = _below("score.json")
    replicates = _below("replicates.json")
    benchmarks = _below("benchmarks.json")
    samples = _each("samples/{}.tar")
    features = _each("features/{}.safetensors")


@dataclass(frozen=True)
class State:
    """Files of a training state, which jobs resume from; no rule declares them."""

    folder: Path
    identity = _below("identity.json")
    training = _below("training.jsonl")
    grids = _below("grids")
    ended = _below(ENDED)


@dataclass(frozen=True)
class Reference:
    """Files of a score's reference, or of that of the proxy metrics."""

    folder: Path
    settings = _below("settings.yaml")
    features = _below("features.safetensors")
    record = _below("features.json")
    networks = _below("evaluation-networks.json")


@dataclass(frozen=True)
class Results:
    """Files of an experiment, results/EXPERIMENT, or of its `so-far`."""

    folder: Path
    config = _below("config.yaml")
    prompts = _below("prompts/manifest.json")
    train_captions = _below("prompts/train.txt")
    captions = _below("prompts/evaluation.txt")
    prompts_report = _below("prompts/report.json")
    real_pairs = _below("real-pairs/manifest.json")
    features_settings = _below("features.settings.yaml")
    score_settings = _below("score.settings.yaml")
    summary = _below("summary.csv")
    summary_text = _below("summary.md")
    pairs = _below("pairs.csv")
    seeds = _below("seeds.csv")
    convergence = _below("convergence.csv")
    report = _below("report.html")
    runs = _below("runs")
    store = _below("state/tracking.json")
    mirrored = _below("tracking.json")
    so_far = property(lambda self: Results(self.folder / "so-far"))
    run = _each("runs/{}", Row)
    baseline = _each("baselines/{}", Row)
    state = _each("state/{}", State)
    reference = _each("{}", Reference)  # `reference` or `watch`
    embeddings = _each("embeddings/{}/index.json")
    figure = _each("figures/{}")
    log = _each("logs/{}.log")
    benchmark = _each("benchmarks/{}.tsv")

    def row(self, kind: str, name: str) -> Row:
        """Return the files of one of the `runs` or `baselines`."""
        return Row(self.folder / kind / name)

    def teacher(self, name: str | None = None) -> Path:
        """Return the folder of the teacher, or of a further one by name."""
        return self.folder / teacher_name(name)

    def provenance(self, name: str | None = None) -> Path:
        """Return the record of a teacher's source, which rules take for the whole folder."""
        return self.teacher(name) / "provenance.json"

    def teachers(self) -> list[Path]:
        """Return the existing folders of all teachers."""
        return [self.teacher(), *sorted(path for path in self.folder.glob(teacher_name("*")) if path.is_dir())]


def teacher_name(name: str | None = None) -> str:
    """Return `teacher`, or `teachers/NAME`."""
    return "teacher" if name is None else f"teachers/{name}"


def settings_beside(folder: Path) -> Path:
    """Return the settings of a stage that writes a folder: next to it, as the folder is replaced atomically."""
    return folder.with_name(f"{folder.name}.settings.yaml")

"""Spell every path under results/ once: for rules, status, tracking, serve, report and command line.

Names may be Snakemake's wildcards: `Results(Path("results/shapes")).run("{run}").score` is a rule's pattern.
"""

from dataclasses import dataclass
from pathlib import Path


def _below(name: str) -> property:
    return property(lambda self: self.folder / name)


@dataclass(frozen=True)
class Row:
    """Name the files of a run or a baseline: a row of the table."""

    folder: Path
    settings = _below("settings.yaml")
    generation = _below("generate.yaml")
    generator = _below("generator")
    manifest = _below("generator/manifest.json")
    record = _below("generator/generator.json")
    training = _below("training.jsonl")
    grids = _below("grids")
    score = _below("score.json")
    replicates = _below("replicates.json")

    def samples(self, shard: str) -> Path:
        """Return a shard of images; its record lies beside it."""
        return self.folder / "samples" / f"{shard}.tar"

    def features(self, shard: str) -> Path:
        """Return the features of a shard; their record lies beside them."""
        return self.folder / "features" / f"{shard}.safetensors"


@dataclass(frozen=True)
class State:
    """Name the files of a training state; they are kept between jobs and are no outputs."""

    folder: Path
    identity = _below("identity.json")
    training = _below("training.jsonl")
    grids = _below("grids")
    ended = _below("ended.json")


@dataclass(frozen=True)
class Reference:
    """Name the files of the reference of a score, or of the watch over a training."""

    folder: Path
    settings = _below("settings.yaml")
    features = _below("features.safetensors")
    record = _below("features.json")
    networks = _below("evaluation-networks.json")


@dataclass(frozen=True)
class Results:
    """Name the files of an experiment, results/EXPERIMENT, or of its part that is scored so far."""

    folder: Path
    config = _below("config.yaml")
    prompts = _below("prompts/manifest.json")
    train_captions = _below("prompts/train.txt")
    captions = _below("prompts/evaluation.txt")
    prompts_report = _below("prompts/report.json")
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

    @property
    def so_far(self) -> "Results":
        """Return the folder for the report of an unfinished experiment."""
        return Results(self.folder / "so-far")

    def row(self, kind: str, name: str) -> Row:
        """Return the files of one of the `runs` or `baselines`."""
        return Row(self.folder / kind / name)

    def run(self, name: str) -> Row:
        """Return the files of a distillation or an import."""
        return self.row("runs", name)

    def baseline(self, name: str) -> Row:
        """Return the files of a baseline."""
        return self.row("baselines", name)

    def state(self, run: str) -> State:
        """Return the training state of a distillation."""
        return State(self.folder / "state" / run)

    def teacher(self, name: str | None = None) -> Path:
        """Return the folder of the teacher, or of a further one that imports name."""
        return self.folder / teacher_name(name)

    def teachers(self) -> list[Path]:
        """Return the folders of all teachers that are there."""
        return [self.teacher(), *sorted(path for path in self.folder.glob(teacher_name("*")) if path.is_dir())]

    def teacher_settings(self, name: str | None = None) -> Path:
        """Return the settings that lie beside a teacher's folder."""
        return settings_beside(self.teacher(name))

    def reference(self, name: str = "reference") -> Reference:
        """Return the files of the `reference` or the `watch`."""
        return Reference(self.folder / name)

    def figure(self, name: str) -> Path:
        """Return a figure, with its suffix."""
        return self.folder / "figures" / name

    def log(self, job: str) -> Path:
        """Return what a job printed."""
        return self.folder / "logs" / f"{job}.log"

    def benchmark(self, job: str) -> Path:
        """Return the time and memory of a job."""
        return self.folder / "benchmarks" / f"{job}.tsv"


def settings_beside(folder: Path) -> Path:
    """Return the settings of a stage that writes a folder: they are next to it, as it appears whole."""
    return folder.with_name(f"{folder.name}.settings.yaml")


def teacher_name(name: str | None = None) -> str:
    """Return `teacher`, or `teachers/NAME`."""
    return "teacher" if name is None else f"teachers/{name}"

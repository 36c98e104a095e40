"""Prepare a call of Snakemake: validate its configuration, add the directives that all rules share, limit the GPUs."""

import re
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from pathlib import Path

from ..cluster.gpus import visible_gpus
from ..cluster.machine import has_gpu, mark_submitting_process, prepend_python_to_path
from ..cluster.slurm import adapt
from ..config import (
    OBJECTIVES,
    Config,
    DistillResources,
    JobResources,
    baselines,
    dump,
    embedded_captions,
    generators,
    parse_config,
    read_yaml,
    resamplings,
    runs,
    shards,
)
from ..data.captions import check_enough
from ..errors import UserError
from .digests import data_digests, stage_digest
from .inputs import Inputs
from .paths import Results, Row, teacher_name
from .plan import to_text
from .rules import RULES
from .settings import stage_settings


def bootstrap(workflow, config: dict) -> "Setup":
    """Validate a Snakefile's configuration, or raise WorkflowError; prepare its process, jobs and rules that follow."""
    from snakemake.exceptions import WorkflowError

    try:
        for given in workflow.configfiles:
            read_yaml(given)  # rejects repeated keys, of which Snakemake takes the last
        checked = parse_config(config, files=workflow.configfiles, arguments=sys.argv[1:])
        setup = Setup(checked, data_digests(checked))
        prepend_python_to_path()
        adapt(checked.experiment)
        if workflow.is_main_process:  # jobs run this Snakefile too
            check_enough(checked.prompts, checked.generate.samples)
            _check_objectives(checked)
            mark_submitting_process()
            _limit_gpus(workflow, checked.resources.distill)
    except UserError as error:
        raise WorkflowError(str(error)) from None
    if workflow.output_settings.dryrun:
        print(to_text(checked, int(has_gpu())), file=sys.stderr)
    complete_rules(workflow, setup.directives)
    return setup


def _check_objectives(config: Config) -> None:
    """Raise UserError for an unknown objective; torch is imported for one of the user's own alone."""
    for name in {run.objective for run in runs(config)} - OBJECTIVES.keys():
        registered = import_module("sid_core.method").OBJECTIVES
        if name not in registered:
            raise UserError(f"config: objective={name}: expected {' or '.join(registered)}")


def _limit_gpus(workflow, asks: DistillResources) -> None:
    """Limit the GPUs of all jobs to this machine's, unless a profile, --resources gpu=N or a cluster limits them."""
    from snakemake.resources import Resource

    limits = workflow.global_resources
    if workflow.resource_settings.nodes is None and "gpu" not in limits:
        limits["gpu"] = Resource("gpu", max(len(visible_gpus()), 1))
    limit = limits.get("gpu")
    if limit is not None and limit.value < asks.gpus(int(has_gpu())):  # Snakemake would silently lower its number
        text = f"resources.distill.gpu={asks.gpu}: all jobs together may have {limit.value}"
        raise UserError(f"{text}; add --resources gpu={asks.gpu}")


def complete_rules(workflow, directives: Callable[[str], dict]) -> None:
    """Add `directives(name)` to every rule that follows, before Snakemake registers it; params are added to the rule's own.

    A Snakefile is compiled to `@workflow.rule(name=…)` over one such decorator for each directive (read in Snakemake 9.27);
    tests/pipeline/test_bootstrap.py notices a change.
    """
    register = workflow.rule

    def rule(name: str, **place):
        def complete(ruleinfo):
            for directive, given in directives(name).items():
                decorate = getattr(workflow, directive)
                if directive == "params":
                    _, own = ruleinfo.params or ((), {})
                    given = own | given
                (decorate(**given) if isinstance(given, dict) else decorate(given))(ruleinfo)
            return register(name=name, **place)(ruleinfo)

        return complete

    workflow.rule = rule


@dataclass(frozen=True)
class Setup:
    """Values that the rules read from the configuration."""

    config: Config
    data: dict[str, str]  # digests of the user's files, by stage

    @cached_property
    def results(self) -> Results:
        """Return the paths of the experiment."""
        return Results(Path("results") / self.config.experiment)

    @cached_property
    def settings(self) -> dict[str, str]:
        """Return the text of every settings file, by its path below results/EXPERIMENT."""
        blocks = stage_settings(self.config) | {str(Results(Path()).config): self.config}
        return {name: dump(block) for name, block in blocks.items()}

    @cached_property
    def names(self) -> dict[str, list[str]]:
        """Return the values of the wildcards: `distilled`, `resampled` and `imported` make up the `runs`."""
        return {
            "distilled": [run.name for run in runs(self.config)],
            "real_images": [run.name for run in runs(self.config) if run.uses_real_images],
            "embedded": embedded_captions(self.config),
            "resampled": list(self.sources),
            "imported": [imported.name for imported in self.config.imports],
            "runs": [run.name for run in generators(self.config)],
            "baselines": [baseline.name for baseline in baselines(self.config)],
            "teachers": [teacher_name(), *map(teacher_name, self.config.teachers)],
            "shards": shards(self.config),
        }

    @cached_property
    def sources(self) -> dict[str, str]:
        """Return the runs whose generators further rows sample in fewer evaluations, by the row's name."""
        return {settings.run.name: settings.source for settings in resamplings(self.config)}

    def every(self, pattern: Callable[[Row], Path]) -> list[Path]:
        """Return a file of every run and baseline, in the order of the tables."""
        return [pattern(self.results.row(kind, name)) for kind in ("runs", "baselines") for name in self.names[kind]]

    def teacher_of(self, wildcards) -> Path:
        """Return the provenance of the teacher that a run belongs to."""
        teachers = {imported.name: imported.teacher for imported in self.config.imports}
        return self.results.provenance(teachers.get(wildcards.run))

    def real_pairs_of(self, wildcards) -> list[Path]:
        """Return the encoded real images, if a run uses them."""
        return [self.results.real_pairs] * (wildcards.run in self.names["real_images"])

    def teacher_scores(self, wildcards) -> list[Path]:
        """Return the scores of the teacher's rows, if a run is compared with the best of them."""
        wanted = self.config.evaluate.fid_teacher and wildcards.kind == "runs"
        rows = [baseline for baseline in baselines(self.config) if baseline.kind == "teacher"]
        return [self.results.baseline(row.name).score for row in rows] if wanted else []

    def embeddings_of(self, wildcards) -> list[Path]:
        """Return the embeddings that a distillation reads, if they are on disk."""
        names = ["train", *["real"] * (wildcards.run in self.names["real_images"])]
        return [self.results.embeddings(name) for name in names if name in self.names["embedded"]]

    def sampled_embeddings_of(self, wildcards) -> list[Path]:
        """Return the embeddings that samples are conditioned on, if they are on disk; they are of `teacher` alone."""
        own = getattr(wildcards, "run", None) is None or self.teacher_of(wildcards) == self.results.provenance()
        return [self.results.embeddings("evaluation")] * ("evaluation" in self.names["embedded"] and own)

    def embeddings_option(self, wildcards) -> list[str]:
        """Return the option of the commands that draw samples, if their embeddings are on disk."""
        return [f"--embeddings {path.parents[1]}" for path in self.sampled_embeddings_of(wildcards)]

    def shard_range(self, wildcards) -> tuple[int, int]:
        """Return the first sample of a shard and the end of its range; sample i has caption i."""
        generate = self.config.generate
        start = int(wildcards.shard) * generate.samples_per_shard
        return start, min(start + generate.samples_per_shard, generate.samples)

    def directives(self, name: str) -> dict:
        """Return the directives of a rule that are independent of its inputs and outputs."""
        rule = RULES.get(name)
        if rule is None:
            return {}
        asks = getattr(self.config.resources, rule.asks) if isinstance(rule.asks, str) else rule.asks
        wildcards = " ".join(f"{{wildcards.{wildcard}}}" for wildcard in rule.wildcards)
        progress = " (progress: {log})" if isinstance(asks, DistillResources) else ""
        return {
            "log": str(self.results.log(rule.log)),
            "benchmark": str(self.results.benchmark(rule.log)),
            "conda": "../../environment.yml",
            "threads": asks.threads,
            "resources": _resources(asks),
            "params": {"code": stage_digest(rule.code)} if rule.code else {},
            "message": (wildcards if name in rule.wildcards else f"{name} {wildcards}").rstrip() + progress,
        }

    def report_so_far(self) -> None:
        """Report the scored runs where a failed one prevents the report of all."""
        try:
            out = Inputs.so_far(self.config, self.results.folder).out
        except UserError:  # no run is scored
            return
        stage = [sys.executable, "-m", "sid_core", "report", "--so-far", "--settings", self.results.config]
        done = subprocess.run([*stage, "--results", self.results.folder], capture_output=True, text=True)
        if done.returncode:
            reason = done.stderr.strip().splitlines()[-1]
            print(f"no report of the scored runs: {reason}", file=sys.stderr)
        else:
            print(f"unfinished: {out.report} compares what is scored so far", file=sys.stderr)


def _resources(asks: JobResources) -> dict:
    """Return the resources of a job; a retry requests more memory and time, since it may have run out of them."""
    amount, unit = int(asks.runtime[:-1]), asks.runtime[-1]
    gpu = asks.gpus(int(has_gpu()))
    shared = {"gpu": gpu, "mem_mb": lambda wildcards, attempt: attempt * asks.mem_mb}
    if not isinstance(asks, DistillResources):
        return shared | {"runtime": lambda wildcards, attempt: f"{attempt * amount}{unit}"}
    # a job of several nodes runs its own srun, so it must be no step of one (`mpi`); a task on each node starts torchrun
    several = {"mpi": "srun", "tasks": asks.nodes, "tasks_per_gpu": 0} if asks.nodes > 1 else {}
    own = {key: getattr(asks, key) for key in ("runtime", "nodes", "continuations", "save_s")}
    processes = {"processes": gpu}  # a cluster's profile may request the GPUs as `gres` instead
    return several | shared | own | processes | {"attempt": lambda wildcards, attempt: attempt}


def any_of(names: Iterable[str]) -> str:
    """Return a pattern of exactly these names; without names it matches nothing."""
    return "|".join(map(re.escape, names)) or "$^"

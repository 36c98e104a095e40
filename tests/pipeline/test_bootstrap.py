"""Test the directives that all rules share, and the files by which status recognises jobs."""

import re

import pytest
from project import ROOT, Project

from sid_core import cli
from sid_core.config import load_config
from sid_core.pipeline.paths import Results
from sid_core.pipeline.rules import RULES
from sid_core.pipeline.status.jobs import jobs

FILES = {path.name: path.read_text() for path in (ROOT / "workflow" / "rules").glob("*.smk")}
TEXTS = dict(re.findall(r"^rule (\w+):\n((?:    .*\n|\n)*)", "\n\n".join(FILES.values()), re.M))


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """Make the smallest experiment, with an import of another teacher and a watched training."""
    made = Project(tmp_path_factory.mktemp("project"))
    (made.folder / "x.pkl").touch()
    published = {"name": "published", "file": "x.pkl", "scale": 2, "train_kimg": 1, "teacher": "other"}
    made.configure(imports=[published], teachers={"other": {"source": "embedded"}}, distill={"proxy_samples": 8})
    return made


def test_jobs_have_the_outputs_and_logs_of_the_rules(project):
    outputs = {line.split("\t")[0] for line in project.run("--summary").splitlines()}
    logs = set(re.findall(r"results/smallest/logs/\S+\.log", project.run("--dry-run", "--printshellcmds")))
    found = jobs(load_config(project.folder / "config.yaml"))
    below = project.results.relative_to(project.folder)
    assert {str(below / job.output) for job in found} <= outputs
    assert {str(below / job.log) for job in found} == {log for log in logs if "/logs/settings/" not in log}


def test_complete_rules_gives_a_rule_its_log_and_benchmark(project):
    """Check a wrapped method of Snakemake, which a new version may call otherwise."""
    results = Results(project.results)
    target = str(results.store.relative_to(project.folder))
    said = project.run("--config", "tracking={enabled: false}", "--quiet", "host", "--", target)
    assert ": tracking_init\n" in said
    assert results.store.is_file()
    assert results.log("tracking_init").is_file()
    assert results.benchmark("tracking_init").read_text().startswith("s\t")


def test_bootstrap_prints_the_plan_in_a_dry_run_alone(project):
    assert "plan of smallest" in project.snakemake("-n").stdout
    assert "plan of smallest" not in project.snakemake("--summary").stdout


def test_score_of_a_run_waits_for_the_teachers_rows_where_fid_t_is_wanted(project):
    said = project.snakemake("-n", "--printshellcmds", "--config", "evaluate={fid_teacher: true}").stdout
    commands = re.findall(
        r"-m sid_core score .*--out results/smallest/(\w+)/.* --teacher-scores ?(\S*) +--threads", said
    )
    row = "results/smallest/baselines/teacher-dpm-solver-karras-cfg1.5-1steps/score.json"
    assert sorted(set(commands)) == [("baselines", ""), ("runs", row)]


def test_rules_with_embeddings_on_disk_give_them_to_the_stages_of_their_teacher(project):
    said = project.snakemake("-n", "--printshellcmds", "--config", "prompts={embeddings: disk}").stdout
    captions = re.findall(r"-m sid_core embed-prompts --captions results/smallest/prompts/(\w+)\.txt ", said)
    assert sorted(captions) == ["evaluation", "train"]
    stages = re.findall(r"(?:sid_core|--) ((?:distill|generate|generate-baseline) --.*?) --threads", said, re.S)
    given = {stage for stage in stages if " --embeddings results/smallest/embeddings" in stage}
    own = {stage for stage in stages if "teachers/other" in stage}
    assert len(own) == 1
    assert given == set(stages) - own


def test_rules_have_the_names_of_the_subcommands():
    assert set(TEXTS) - {"all", "settings"} == set(RULES)
    commands = {name.replace("_", "-") for name in RULES}
    assert commands <= set(cli.COMMANDS)
    assert set(cli.GROUPS["Internal stages"]) <= commands
    for name in RULES:
        command = name.replace("_", "-")
        assert re.search(rf"-m sid_core {command} |-- {command} ", TEXTS[name]), name


def test_rules_have_a_short_median():
    lengths = sorted(len(text.strip().splitlines()) + 1 for text in TEXTS.values())
    assert lengths[len(lengths) // 2] <= 15

"""Test the real graph with the smallest experiment: first runs, reruns and errors.

One experiment is shared and each test goes on from where the last one left it: a stage is a process, and imports take most of
its time. The first run distils one scale; a second one is added later.
"""

import json
import os
import re
import shutil
import subprocess
import sys

import pytest
from project import ROOT, SMALLEST, Project


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """Make a project that no test runs."""
    return Project(tmp_path_factory.mktemp("project"))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Run another project once and return it."""
    project = Project(tmp_path_factory.mktemp("finished"))
    project.first_output = project.run()
    return project


# --- before anything runs ----------------------------------------------------------------------------------------------------


def test_rules_pass_snakemakes_lint(project):
    done = project.snakemake("--lint")
    assert done.returncode == 0, done.stdout
    assert "Congratulations" in done.stdout


def test_rules_pass_snakefmt():
    command = [sys.executable, "-m", "snakefmt.snakefmt", "--check", "--line-length", "120", "Snakefile", "workflow"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_snakemake_without_options_loads_the_default_profile(project):
    assert "Using workflow specific profile profiles/default" in project.snakemake("--dry-run").stdout


def test_snakemake_with_null_on_the_command_line_reads_null(project):
    done = project.snakemake(
        "--dry-run",
        "--printshellcmds",
        "--config",
        "distill={lr: 1e-6, lr_final: null}",
        "tracking={uri: null}",
        "teacher={path: ~, repo: }",
    )
    assert done.returncode == 0, done.stdout
    assert "lr_final: null" in done.stdout
    assert "lr_final: 'null'" not in done.stdout
    assert f"sqlite:///{project.folder}/mlflow.db" in done.stdout


def test_snakemake_with_a_password_writes_it_nowhere(project):
    secret = "http://me:hidden@127.0.0.1:9"
    planned = project.snakemake("--dry-run", "--printshellcmds", MLFLOW_TRACKING_URI=secret)
    assert planned.returncode == 0
    assert "http://***@127.0.0.1:9" in planned.stdout
    refused = project.complaint("--config", f"tracking={{uri: {secret}}}")
    assert "config: tracking.uri=http://***@127.0.0.1:9: expected a URL without" in refused
    made = [path.read_bytes() for path in project.folder.rglob("*") if path.is_file()]
    assert not any("hidden" in text for text in (planned.stdout, refused))
    assert not any(b"hidden" in data for data in made)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("null", "config: experiment=null: expected a valid string, got no value. Fix: give it one"),
        ("~", "config: experiment=null: expected a valid string, got no value. Fix: give it one"),
        ("2026_09_01", "config: experiment=2026_09_01: expected text, which Snakemake reads as the number 20260901."),
        (
            "1e3",
            "config: experiment=1e3: expected text, which Snakemake reads as the number 1000.0. Fix: quote it in a",
        ),
    ],
)
def test_snakemake_with_a_name_read_as_a_number_raises(project, name, message):
    assert message in project.complaint("--dry-run", "--config", f"experiment={name}")
    assert not (project.folder / "results" / "null").exists()


@pytest.mark.parametrize(
    ("blocks", "expected"),
    [
        ({"distill": {"t_init": 1200}}, ["config: distill.t_init=1200: expected less than or equal to 1000"]),
        (
            {"distill": {"trian_kimg": 1}, "guidance_scales": [0]},
            [
                "config: unknown key 'distill.trian_kimg'; did you mean 'train_kimg'?",
                "config: guidance_scales.0=0: expected greater than 0",
            ],
        ),
        (
            {"teacher": {"source": "local", "path": "nowhere"}, "preset": "sd15", "evaluate": {"protocol": "mine"}},
            ["teacher.path=nowhere: no such file or folder"],
        ),
        (
            {"extra_runs": [{"strategy": "zero", "objective": "rectified"}]},
            ["config: objective=rectified: expected sid or dmd or diff_instruct"],
        ),
        (
            {"imports": [{"name": "mine", "file": "nowhere.pkl", "scale": 2, "train_kimg": 1}]},
            ["imports.mine.file=nowhere.pkl: no such file or folder"],
        ),
        (
            {"prompts": {"source": "file", "train": "captions.txt", "evaluation": "captions.txt"}},
            [
                "generate.samples=32: prompts.evaluation=captions.txt holds only 2 captions. Fix: lower generate.samples or give more captions"
            ],
        ),
    ],
)
def test_snakemake_with_a_wrong_value_runs_nothing(project, blocks, expected):
    (project.folder / "captions.txt").write_text("a cat\na dog\n")
    project.configure(**blocks)
    said = project.complaint()
    for line in expected:
        assert said.count(line) == 1
    assert len(said.splitlines()) < 8
    assert not project.results.exists()
    project.configure()


@pytest.mark.parametrize("given", [(), ("--configfile", "other.yaml")])
def test_snakemake_with_a_key_given_twice_names_both_lines(project, given):
    project.configure()
    name = given[-1] if given else "config.yaml"
    with open(project.folder / name, "a") as file:
        file.write("generate: {batch: 8}\n\ngenerate: {batch: 16}\n")
    try:
        assert re.search(
            rf"{name}, lines \d+ and \d+: 'generate' is given twice", project.complaint("--dry-run", *given)
        )
    finally:
        project.configure()


def test_snakemake_with_a_json_file_reads_it(project):
    (project.folder / "other.json").write_text('{\n\t"generate": {"batch": 8}\n}')
    project.planned("--configfile", "other.json")


def test_snakemake_with_a_malformed_config_names_the_line(project):
    (project.folder / "config.yaml").write_text("experiment: [x\n")
    assert "not valid JSON or YAML" in project.complaint()
    project.configure()


# --- from nothing ------------------------------------------------------------------------------------------------------------


def test_run_from_nothing_writes_every_file(finished):
    run = finished.results / "runs" / "lsg-1.5"
    for path in (
        finished.results / "teacher" / "manifest.json",
        finished.results / "prompts" / "report.json",
        finished.results / "reference" / "features.safetensors",
        finished.results / "baselines" / "teacher-dpm-solver-karras-cfg1.5-1steps" / "score.json",
        run / "settings.yaml",
        run / "generator" / "unet" / "diffusion_pytorch_model.safetensors",
        run / "training.jsonl",
        run / "grids" / "00000032.png",
        run / "samples" / "00000.tar",
        run / "features" / "00000.safetensors",
        run / "score.json",
        finished.results / "summary.csv",
        finished.results / "summary.md",
        finished.results / "figures" / "fid_clip.png",
        finished.results / "figures" / "training.png",
        finished.results / "figures" / "samples.png",
        finished.results / "report.html",
        finished.results / "benchmarks" / "distill" / "lsg-1.5.tsv",
    ):
        assert path.stat().st_size > 0
    assert not list(finished.results.rglob("*.part"))


def test_run_prints_links_to_the_comparison(finished):
    page = "http://127.0.0.1:5000/#/experiments/1/runs?viewStateShareKey=sid-core&compareRunsMode="
    for mode in ("TABLE", "CHART"):
        assert page + mode in finished.first_output


def test_snakemake_again_has_nothing_to_do(finished):
    assert "Nothing to be done" in finished.run()


def test_report_of_an_unfinished_experiment_writes_so_far(finished):
    score = finished.results / "baselines" / "teacher-dpm-solver-karras-cfg1.5-1steps" / "score.json"
    score.rename(score.with_suffix(".hidden"))
    paths = ["--settings", str(finished.results / "config.yaml"), "--results", str(finished.results)]
    subprocess.run([sys.executable, "-m", "sid_core", "report", "--so-far", *paths], check=True)
    score.with_suffix(".hidden").rename(score)
    made = {path.name for path in (finished.results / "so-far").iterdir()}
    assert made == {"pairs.csv", "seeds.csv", "summary.csv", "summary.md", "convergence.csv", "figures", "report.html"}
    text = (finished.results / "so-far" / "summary.md").read_text()
    assert "Unfinished: not scored so far, and missing here: teacher, DPM-Solver++ Karras, 1 step, CFG 1.5." in text
    assert "Nothing to be done" in finished.run()


def test_snakemake_after_a_deleted_intermediate_makes_it_again(finished):
    path = finished.results / "runs" / "lsg-1.5" / "features" / "00000.json"
    path.rename(path.with_suffix(".hidden"))
    assert finished.planned() == {"features": 1, "score": 1, "pairs": 1, "report": 1, "track": 1}
    path.with_suffix(".hidden").rename(path)


# --- what a change makes again -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("blocks", "rules"),
    [
        ({"evaluate": {"neighbours": 4}}, {"score"}),
        ({"evaluate": {"caption_prefix": "a picture of "}}, {"evaluation_networks", "reference", "features", "score"}),
        ({"generate": {"seed": 7}}, {"generate", "generate_baseline", "features", "score"}),
        ({"baselines": {"guidance_scales": [1.5, 2]}}, {"generate_baseline", "features", "score"}),
        ({"distill": {"lr": 2e-4}}, {"distill", "generate", "features", "score"}),
    ],
)
def test_snakemake_after_a_change_runs_its_stage_and_later_ones(finished, blocks, rules):
    finished.configure(**blocks)
    planned = finished.planned()
    finished.configure()
    assert set(planned) - {"settings", "pairs", "report", "track"} == rules


def test_snakemake_with_more_samples_only_adds_shards(finished):
    finished.configure(generate={"samples": 64})
    planned = finished.planned()
    finished.configure()
    assert (planned["generate"], planned["generate_baseline"]) == (1, 1)
    assert "distill" not in planned


def test_snakemake_with_other_tracking_reruns_only_the_reports(finished):
    for tracking in ({"enabled": False}, {"uri": "http://127.0.0.1:9"}):
        finished.configure(tracking=tracking)
        assert set(finished.planned()) == {"settings", "tracking_init", "pairs", "report", "track"}
    finished.configure()


def test_snakemake_after_an_undone_edit_has_nothing_to_do(finished):
    finished.configure(distill={"lr": 2e-4})
    assert finished.planned()["distill"] == 1
    finished.configure()
    assert finished.planned() == {}


def test_stage_with_a_truncated_input_names_it(finished):
    path = finished.results / "runs" / "lsg-1.5" / "features" / "00000.safetensors"
    whole, times = path.read_bytes(), (path.stat().st_atime_ns, path.stat().st_mtime_ns)
    path.write_bytes(whole[:1000])
    os.utime(path, ns=times)
    assert finished.planned() == {}  # Snakemake trusts the time
    score = path.parents[1] / "score.json"
    said = finished.complaint("--forcerun", "score", "--", str(score.relative_to(finished.folder)))
    assert f"error: {path.relative_to(finished.folder)}: differs from its recorded sha256 (truncated or edited)" in said
    assert not score.exists()
    path.write_bytes(whole)
    os.utime(path, ns=times)


def test_snakemake_with_a_new_run_of_two_steps_trains_it_and_samples_it_twice(finished):
    before = {
        path: path.stat().st_mtime_ns for path in (finished.results / "runs" / "lsg-1.5").rglob("*") if path.is_file()
    }
    two = {"strategy": "lsg", "scale": 1.52, "num_steps": 2, "steps_objective": "mixture", "sample_steps": [1]}
    finished.configure(extra_runs=[two])
    planned = finished.planned()
    assert {rule: planned[rule] for rule in planned if rule not in ("pairs", "report", "track")} == {
        "settings": 5,  # two of each row, and the whole configuration for the comparison
        "distill": 1,
        "resample": 1,
        "generate": 2,
        "features": 2,
        "score": 3,
    }
    finished.run()
    assert before == {path: path.stat().st_mtime_ns for path in before}
    rows = {path.name: path for path in (finished.results / "runs").iterdir()}
    assert rows.keys() == {"lsg-1.5", "lsg-1.52-2steps", "lsg-1.52-2steps-in1"}
    scores = [json.loads((rows[f"lsg-1.52-2steps{end}"] / "score.json").read_text()) for end in ("", "-in1")]
    assert [score["nfe"] for score in scores] == [2, 1]
    assert scores[0]["generator_sha256"] == scores[1]["generator_sha256"]
    assert scores[0]["protocol_hash"] == scores[1]["protocol_hash"]
    assert scores[0]["fid"] != scores[1]["fid"]
    assert "SiD-LSG κ = 1.52, 1 step of 2" in (finished.results / "summary.md").read_text()
    assert "Nothing to be done" in finished.run()


# --- what MLflow holds, after two runs and a repeated stage ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def mirrored(finished):
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{finished.folder}/mlflow.db")
    experiment = client.get_experiment_by_name("smallest")
    return client, client.search_runs([experiment.experiment_id], "tags.sweep = 'smallest'", max_results=100)


def test_mlflow_has_each_run_once(mirrored):
    names = [run.data.tags["run"] for run in mirrored[1]]
    assert len(names) == len(set(names))
    assert {"lsg-1.5", "lsg-1.52-2steps", "lsg-1.52-2steps-in1", "teacher-dpm-solver-karras-cfg1.5-1steps"} <= set(
        names
    )
    assert {run.data.tags["kind"] for run in mirrored[1]} == {"generator", "teacher", "published"}
    assert {run.info.status for run in mirrored[1]} == {"FINISHED"}


def test_mlflow_has_every_point_and_the_scores(finished, mirrored):
    client, runs = mirrored
    two = "SiD-LSG κ = 1.52"
    labels = {
        "lsg-1.5": "SiD-LSG κ = 1.5",
        "lsg-1.52-2steps": f"{two}, 2 steps",
        "lsg-1.52-2steps-in1": f"{two}, 1 step of 2",
    }
    for run in runs:
        if run.data.tags["kind"] != "generator":
            continue
        folder = finished.results / "runs" / run.data.tags["run"]
        assert run.info.run_name == labels[folder.name]
        log = folder / "training.jsonl"
        assert log.is_file() != folder.name.endswith("-in1")
        points = [json.loads(line) for line in log.read_text().splitlines()] if log.is_file() else []
        logged = client.get_metric_history(run.info.run_id, "training/score_gap")
        assert [(metric.step, metric.value) for metric in logged] == [
            (point["nimg"], point["score_gap"]) for point in points
        ]
        score = json.loads((folder / "score.json").read_text())
        assert run.data.metrics["fid"] == score["fid"]
        assert run.data.params["protocol_hash"] == score["protocol_hash"]
        assert (
            float(run.data.params["kappa_teacher"]) == float(run.data.tags["scale"]) == float(folder.name.split("-")[1])
        )
        artifacts = {artifact.path for artifact in client.list_artifacts(run.info.run_id)}
        assert {"generator", "settings.yaml", *(["images"] if points else [])} <= artifacts


def test_snakemakes_own_report_needs_no_network(finished):
    finished.run("--report", "snakemake-report.html")
    assert (finished.folder / "snakemake-report.html").stat().st_size > 100_000


# --- one run of several that fails -----------------------------------------------------------------------------------------------


def test_keep_going_with_a_diverging_run_reports_the_finished_ones(finished):
    shutil.rmtree(finished.results / "so-far", ignore_errors=True)
    scales = {"fake_train": 1, "fake_eval": 1, "teacher": 1e38}
    finished.configure(extra_runs=[{"strategy": "custom", "name": "diverges", **scales}])
    done = finished.snakemake("--cores", "2", "--keep-going")
    assert done.returncode == 1
    said = "unfinished: results/smallest/so-far/report.html compares what is scored so far"
    assert done.stdout.splitlines().count(said) == 1
    text = (finished.results / "so-far" / "summary.md").read_text()
    assert "Unfinished: not scored so far, and missing here: SiD κ = 1/1/1e+38 (diverges)." in text
    assert "lsg-1.5" in (finished.results / "so-far" / "summary.csv").read_text()
    assert (finished.results / "so-far" / "report.html").is_file()


# --- real images -----------------------------------------------------------------------------------------------------------------


def test_snakemake_with_real_images_encodes_them_for_the_runs_that_use_them(finished):
    finished.configure()
    finished.run()
    before = {path: path.stat().st_mtime_ns for path in (finished.results / "runs" / "lsg-1.5").rglob("*")}
    gan = {"strategy": "long", "scale": 1.5, "adversarial": {"weight": 0.01, "start_nimg": 16}}
    distill = SMALLEST["distill"] | {"real": {"pairs": 40}}
    finished.configure(extra_runs=[gan], distill=distill)
    planned = finished.planned()
    assert {rule: planned[rule] for rule in planned if rule not in ("pairs", "report", "track")} == {
        "settings": 4,  # the run's two, those of its pairs, and the whole configuration for the comparison
        "real_pairs": 1,
        "distill": 1,
        "generate": 1,
        "features": 1,
        "score": 1,
    }
    finished.run()
    assert before == {path: path.stat().st_mtime_ns for path in before}
    assert len((finished.results / "real-pairs" / "captions.txt").read_text().splitlines()) == 40
    for name in ("summary.md", "summary.csv", "report.html"):
        assert "GAN, uses real images" in (finished.results / name).read_text(), name
    finished.configure(extra_runs=[gan], distill=distill | {"real": {"pairs": 48}})
    planned = finished.planned()
    assert (planned["real_pairs"], planned["distill"]) == (1, 1)

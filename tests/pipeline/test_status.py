"""Test the status of an experiment of made-up files: each state, the time left, and few imports."""

import json
import os
import re
import subprocess
import sys
import time
from base64 import urlsafe_b64encode
from contextlib import contextmanager
from pathlib import Path

import pytest

from sid_core import cli
from sid_core import config as c
from sid_core.pipeline.status import poll, text
from sid_core.pipeline.status.jobs import jobs
from sid_core.storage import heartbeat, lease
from sid_core.storage.job_record import record_path

ROOT = Path(__file__).parents[2]


def shipped(**over) -> c.Config:
    return c.parse_config(c.merge(c.read_yaml(ROOT / "config.yaml"), over))


CONFIG = shipped(
    guidance_scales=[1.5, 2],
    extra_runs=[{"strategy": "none", "train_kimg": 9.6}],
    distill={"train_kimg": 19.2},
    baselines={"steps": [8], "guidance_scales": [1], "vae": False, "real": False},
    generate={"samples_per_shard": 2500},
)


@pytest.fixture
def results(tmp_path):
    """Make results/shapes of a pipeline that has just started."""
    folder = tmp_path / "results" / "shapes"
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(c.dump(CONFIG))
    return folder


@pytest.fixture(autouse=True)
def squeue(tmp_path, monkeypatch):
    """Return squeue(text), which sets what Slurm lists; at first, and with None, it does not answer. squeue.asked: calls."""
    answer, asked = tmp_path / "queue", tmp_path / "asked"
    write(tmp_path, "bin/squeue", f"#!/bin/sh\necho $@ >> {asked}\nexec cat {answer}\n")
    (tmp_path / "bin" / "squeue").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=os.pathsep)

    def say(text: str | None) -> None:
        answer.unlink(missing_ok=True) if text is None else answer.write_text(text)

    say.asked = asked
    return say


def job(stage: str, name: str = ""):
    return next(job for job in jobs(CONFIG) if (job.stage, job.name) == (stage, name))


def write(folder: Path, path: str, text: str = "") -> None:
    (folder / path).parent.mkdir(parents=True, exist_ok=True)
    (folder / path).write_text(text)


def record(folder: Path, log: str, **known: object) -> None:
    """Write a record as a job leaves it beside its log."""
    write(folder, log, "whatever it printed\n")
    write(folder, str(record_path(Path(log))), json.dumps(known))


def finish(folder: Path, stage: str, name: str = "", seconds: float = 10) -> None:
    done = job(stage, name)
    write(folder, done.output)
    write(folder, done.log, "00000: 5 of 5 images, 1 images/s\n")
    record(folder, done.log, done=5, total=5, images_per_s=1)
    if done.benchmark:
        write(folder, done.benchmark, f"s\th:m:s\n{seconds}\t0:00:10\n")


def status_of(folder: Path, stage: str, name: str = ""):
    return next(s for s in poll.job_statuses(CONFIG, folder) if s.job == job(stage, name))


def point(nimg: int, speed: float) -> str:
    return json.dumps({"nimg": nimg, "iteration": nimg // 32, "images_per_s": speed}) + "\n"


# --- the graph ---------------------------------------------------------------------------------------------------------


def test_jobs_name_a_subcommand_each():
    assert {job.stage for job in jobs(CONFIG)} <= set(cli.COMMANDS)
    assert len({job.output for job in jobs(CONFIG)}) == len(jobs(CONFIG))


# --- states ------------------------------------------------------------------------------------------------------------


def test_job_statuses_before_the_start_are_waiting(results):
    assert {s.state for s in poll.job_statuses(CONFIG, results)} == {"waiting"}


def test_job_statuses_tell_done_failed_and_stopped_apart(results):
    finish(results, "prompts")
    record(results, "logs/teacher.log", ended="failed", message="teacher: no such folder")
    record(results, "logs/distill/none.log", ended="failed", message="KeyError: 3")
    said = "lsg-2: interrupted; its state is saved, running again continues"
    record(results, "logs/distill/lsg-2.log", ended="interrupted", message=said)
    write(results, "logs/evaluation_networks.log", "half a li")
    assert status_of(results, "prompts").state == "done"
    failed = status_of(results, "teacher", "")
    assert (failed.state, failed.text) == ("failed", "teacher: no such folder")
    assert (status_of(results, "distill", "none").state, status_of(results, "distill", "none").text) == (
        "failed",
        "KeyError: 3",
    )
    assert status_of(results, "distill", "lsg-2").state == "stopped"
    assert status_of(results, "evaluation-networks").state == "stopped"


def test_status_of_a_deleted_result_is_waiting(results):
    finish(results, "generate", "lsg-2 00001")
    (results / job("generate", "lsg-2 00001").output).unlink()
    assert status_of(results, "generate", "lsg-2 00001").state == "waiting"


def test_status_of_a_held_lease_is_running(results):
    state = results / "state" / "lsg-2"
    write(results, "state/lsg-2/training.jsonl", point(3200, 99) + point(9600, 160) + '{"nimg": 99')
    with lease.lease(state):
        running = status_of(results, "distill", "lsg-2")
        assert running.state == "running"
        assert running.text.startswith("9,600 of 19,200 images (50%), 160 images/s, process ")
        assert running.left_s == pytest.approx(60)
    assert status_of(results, "distill", "lsg-2").state == "waiting"
    # killed: its lease stays behind, and holds nothing
    owner = {"host": "elsewhere", "pid": 1, "start": "1", "job": "77", "token": "x"}
    write(results, "state/lsg-2/lease.json", json.dumps(owner))
    assert "Slurm job 77 on elsewhere" in status_of(results, "distill", "lsg-2").text
    long_ago = time.time() - 5 * heartbeat.PERIOD_S
    os.utime(state / "lease.json", (long_ago, long_ago))
    assert status_of(results, "distill", "lsg-2").state == "waiting"


@contextmanager
def stage_process(folder: Path, *arguments: str):
    """Start a process whose command line is that of a stage."""
    command = [sys.executable, "-c", "print(flush=True); open(0).read()", "sid_core", *arguments]
    process = subprocess.Popen(command, cwd=folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        process.stdout.readline()
        yield
    finally:
        process.communicate()


def test_status_of_a_living_process_is_running(results):
    record(results, "logs/generate/lsg-2.00001.log", done=500, total=2500, images_per_s=400)
    out = "results/shapes/runs/lsg-2/samples/00001.tar"
    with stage_process(results.parents[1], "generate", "--out", out):
        running = status_of(results, "generate", "lsg-2 00001")
        assert (running.state, running.left_s) == ("running", 5)
        assert status_of(results, "generate", "lsg-2 00000").state == "waiting"
    assert status_of(results, "generate", "lsg-2 00001").state == "stopped"
    with stage_process(results.parents[2], "generate", "--out", out):  # another clone's
        assert status_of(results, "generate", "lsg-2 00001").state == "stopped"


def mark(results: Path, path: str, cluster_job: str | None) -> None:
    """Mark an output as Snakemake does while a job runs."""
    name = urlsafe_b64encode(f"results/shapes/{path}".encode()).decode()
    write(results.parents[1], f".snakemake/incomplete/{name}", json.dumps({"external_jobid": cluster_job}))


def test_status_of_an_unlisted_cluster_job_is_stopped(results, squeue, monkeypatch):
    """Check the marks after Ctrl-C with pending jobs, or after a killed Snakemake whose job died."""
    pending, begun = job("score", "lsg-2"), job("score", "none")
    for one, number in ((pending, "123"), (begun, "124_3")):
        mark(results, one.output, number)
    write(results, begun.log, "reading\n")

    def states() -> list[str]:
        return [status_of(results, "score", name).state for name in ("lsg-2", "none")]

    assert states() == ["queued", "running"]
    squeue("123\n124_3\n125\n")
    assert states() == ["queued", "running"]
    squeue("124_3\n")
    assert states() == ["stopped", "running"]
    assert status_of(results, "score", "lsg-2").text.startswith("cluster job 123 ended before it began: ")
    squeue("")
    assert states() == ["stopped", "stopped"]
    record(results, begun.log, ended="failed", message="no such folder")
    assert status_of(results, "score", "none").state == "failed"
    squeue(None)
    assert states() == ["queued", "running"]
    monkeypatch.setenv("PATH", str(results))
    assert states() == ["queued", "running"]


def test_job_statuses_ask_squeue_once_a_poll_and_only_of_cluster_jobs(results, squeue):
    squeue("")
    mark(results, job("score", "lsg-1.5").output, None)
    poll.job_statuses(CONFIG, results)
    assert not squeue.asked.exists()
    for name in ("lsg-2", "none"):
        mark(results, job("score", name).output, "123")
    poll.job_statuses(CONFIG, results)
    assert squeue.asked.read_text() == f"--noheader --user={os.getuid()} --array --format=%i\n"


def test_status_of_a_cluster_job_is_queued_then_running(results):
    waiting = job("score", "lsg-2")
    mark(results, waiting.output, "123")
    queued = status_of(results, "score", "lsg-2")
    assert (queued.state, queued.text) == ("queued", "cluster job 123")
    write(results, waiting.log, "reading\n")
    assert status_of(results, "score", "lsg-2").state == "running"


def test_status_of_linked_results_reads_the_marks_beside_the_link(results, tmp_path):
    scratch = tmp_path / "scratch"
    results.parent.rename(scratch)
    results.parent.symlink_to(scratch)
    mark(results, job("score", "lsg-2").output, "123")
    assert status_of(results, "score", "lsg-2").state == "queued"


def test_status_reads_the_list_of_slurm_jobs(results):
    score = job("score", "lsg-2")
    book = {"job": "77", "output": [f"results/shapes/{score.output}", "results/other/x"]}
    write(results.parents[1], ".snakemake/slurm_jobs.jsonl", json.dumps(book) + '\n{"job": "7')
    assert status_of(results, "score", "lsg-2").state == "waiting"  # that job has ended
    mark(results, score.output, None)
    write(results, score.log, "reading\n")
    running = status_of(results, "score", "lsg-2")
    assert (running.state, running.text) == ("running", "cluster job 77")


def test_status_of_a_mark_after_a_kill_is_stopped(results):
    score = job("score", "lsg-2")
    mark(results, score.output, None)
    write(results, score.log, "reading\n")
    assert status_of(results, "score", "lsg-2").state == "running"  # on another machine, it may be
    long_ago = time.time() - 2 * poll.FRESH_S
    os.utime(results / score.log, (long_ago, long_ago))
    assert status_of(results, "score", "lsg-2").state == "stopped"


# --- how long ----------------------------------------------------------------------------------------------------------


def test_left_s_follows_the_measured_times(results):
    assert status_of(results, "distill", "none").left_s == pytest.approx(9600 / CONFIG.plan.train_images_per_s)
    finish(results, "distill", "lsg-1.5", seconds=192)
    assert status_of(results, "distill", "lsg-2").left_s == pytest.approx(192)
    assert status_of(results, "distill", "none").left_s == pytest.approx(96)  # half as long
    write(results, "state/none/training.jsonl", point(7200, 100))
    assert status_of(results, "distill", "none").left_s == pytest.approx(24)  # goes on from there
    finish(results, "features", "lsg-2 00000", seconds=7)
    assert status_of(results, "features", "lsg-2 00001").left_s == pytest.approx(7)


def test_left_s_of_a_method_follows_its_own_runs(results):
    long = [{"strategy": "long", "scale": scale} for scale in (1.5, 2)]
    config = shipped(guidance_scales=[1.5, 2], extra_runs=long, distill={"train_kimg": 19.2})

    def left() -> dict[str, float]:
        return {s.job.name: s.left_s for s in poll.job_statuses(config, results) if s.job.stage == "distill"}

    for name, seconds in (("lsg-1.5", 192), ("long-1.5", 96)):
        (done,) = [one for one in jobs(config) if (one.stage, one.name) == ("distill", name)]
        write(results, done.output)
        write(results, done.benchmark, f"s\th:m:s\n{seconds}\t0:00:10\n")
    assert (left()["lsg-2"], left()["long-2"]) == (pytest.approx(192), pytest.approx(96))


@pytest.mark.parametrize(
    ("seconds", "said"), [(5, "5 s"), (119, "119 s"), (600, "10 min"), (7200, "2 h"), (9e5, "10 d")]
)
def test_duration_of_any_length_has_one_unit(seconds, said):
    assert text._duration(seconds) == said


# --- what is printed ---------------------------------------------------------------------------------------------------


def status(*arguments: object) -> int:
    return cli.main(["status", *map(str, arguments)])


def test_to_text_names_stages_failures_and_logs(results, capsys):
    finish(results, "prompts")
    record(results, "logs/teacher.log", ended="failed", message="teacher: no such folder")
    assert status("--results", results) == 0
    said = capsys.readouterr().out
    assert re.match(r"shapes: 1 of \d+ jobs done, 1 failed, about .* of work left, and nothing runs\n", said)
    assert "  prompts                1 of    1\n" in said
    assert f"failed:\n  teacher: teacher: no such folder\n    {results}/logs/teacher.log\n" in said
    assert "\033" not in said


def test_show_with_watch_prints_a_line_for_each_change(results, capsys, monkeypatch):
    todo = jobs(CONFIG)

    def make_some(_: float) -> None:
        for _ in range(10):
            if todo:
                done = todo.pop(0)
                finish(results, done.stage, done.name)

    monkeypatch.setattr(text.time, "sleep", make_some)
    assert status("--results", results, "--watch") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [int(re.match(r"shapes: (\d+) of", line)[1]) for line in lines] == [
        *range(0, len(jobs(CONFIG)), 10),
        len(jobs(CONFIG)),
    ]


def test_show_with_watch_on_a_terminal_redraws_and_ends_on_ctrl_c(results, capsys, monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setattr(text.time, "sleep", lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
    assert status("--results", results, "--watch") == 0
    assert capsys.readouterr().out.startswith("\033[H\033[Jshapes: 0 of")


def test_status_with_a_configfile_shows_that_experiment(results, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.yaml").write_text((ROOT / "config.yaml").read_text())
    (tmp_path / "more.yaml").write_text("experiment: more\nguidance_scales: [7]\n")
    assert status() == 0
    assert capsys.readouterr().out.startswith("shapes: 0 of")
    assert status("--configfile", "more.yaml") == 0
    assert capsys.readouterr().out.startswith("more: 0 of")


def test_status_of_no_experiment_names_it(tmp_path, capsys):
    assert status("--results", tmp_path / "nowhere") == 1
    assert capsys.readouterr().err.startswith(f"error: --results {tmp_path}/nowhere: has no config.yaml; ")


def test_status_into_a_closed_pipe_prints_no_error(results):
    command = f"{sys.executable} -m sid_core status --results {results} | head -n 1"
    done = subprocess.run(["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True, cwd=ROOT)
    assert (done.stdout.count("\n"), done.stderr, done.returncode) == (1, "", 0)


def test_status_imports_no_large_library(results):
    code = (
        "import sys; from sid_core import cli\n"
        "assert cli.main(['status', '--results', sys.argv[1]]) == 0\n"
        "heavy = {'torch', 'numpy', 'pandas', 'mlflow', 'snakemake', 'diffusers', 'PIL'} & sys.modules.keys()\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code, str(results)], check=True, stdout=subprocess.DEVNULL)

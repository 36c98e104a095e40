"""Test how jobs of a killed Snakemake are tracked; on a real Slurm: tests/slurm."""

import inspect
import json
import re
import threading
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest

from sid_core.cluster import slurm


@pytest.fixture
def squeue(tmp_path, monkeypatch):
    """Simulate a squeue that fails once, as without a controller, and then lists these jobs."""
    program = tmp_path / "bin" / "squeue"
    program.parent.mkdir()
    program.write_text(
        f"#!/bin/sh\nmv {tmp_path}/away {tmp_path}/back 2> /dev/null && exit 1\ncase $* in *%r) cat {tmp_path}/listed;; *) echo 5; echo 7_2;; esac\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent), prepend=":")
    monkeypatch.setattr(slurm.time, "sleep", lambda _: None)
    return tmp_path


def test_dependency_of_files_in_the_making_names_their_jobs(squeue):
    (squeue / "away").touch()
    before = [{"job": "5", "output": ["a", "b"]}, {"job": "6", "output": ["c"]}, {"job": "7_2", "output": ["d"]}]
    path = squeue / "jobs.jsonl"
    path.write_text(
        "".join(json.dumps(entry) + "\n" for entry in before) + '{"job": "8", "out'
    )  # killed while it wrote
    registry = slurm.JobRegistry(path)
    assert registry.before == ["5", "7_2"]
    assert registry.dependency(["b", "d", "e"]) == " --dependency=afterany:5:7_2"
    assert registry.dependency(["c", "e"]) == ""  # it has ended
    registry.note("9", ["c"])
    assert [json.loads(line)["job"] for line in path.read_text().splitlines()] == ["5", "7_2", "9"]


def test_ask_squeue_without_a_controller_warns_and_raises(squeue, monkeypatch, capsys):
    (squeue / "away").touch()
    monkeypatch.setattr(slurm, "PATIENCE_S", -60)
    with pytest.raises(slurm.WorkflowError, match="run again when Slurm answers"):
        slurm.ask_squeue("--me")
    assert "waiting for Slurm to answer" in capsys.readouterr().err


def test_ask_squeue_of_a_cancelled_call_stops_waiting(squeue):
    (squeue / "away").touch()
    cancelled = threading.Event()
    cancelled.set()
    with pytest.raises(slurm.WorkflowError):
        slurm.ask_squeue("--me", wait=cancelled.wait)


@pytest.fixture
def commands(squeue, monkeypatch):
    """Record the calls of Slurm's other commands."""
    (squeue / "listed").write_text("5|RUNNING|None\n7_2|PENDING|Priority\n")
    for name in ("scontrol", "scancel"):
        (squeue / "bin" / name).write_text(f"#!/bin/sh\necho {name} $* >> {squeue}/commands\n")
        (squeue / "bin" / name).chmod(0o755)
    return squeue / "commands"


def test_find_stuck_jobs_of_an_unlisted_job_gives_it_up(squeue, commands, clock):
    monitor = slurm.JobMonitor()
    assert monitor.find_stuck_jobs(["5", "6"]) == {}
    assert monitor.find_stuck_jobs(["5", "6", "8"]) == {}
    (squeue / "away").touch()
    assert monitor.find_stuck_jobs(["5", "6", "8"]) == {}  # no answer tells nothing
    assert monitor.find_stuck_jobs(["5", "6", "8"]).keys() == {"6"}
    assert "does not list job 8" in monitor.find_stuck_jobs(["5", "8"])["8"]
    assert monitor.end_state("8") in slurm.INTERRUPTED
    assert not commands.exists()


def test_find_stuck_jobs_of_a_held_job_releases_it_a_few_times(squeue, commands):
    held = "PENDING|launch failed requeued held"
    (squeue / "listed").write_text(f"5|{held}\n6|{held}\n7_2|PENDING|Priority\n")
    monitor = slurm.JobMonitor()
    for _ in range(slurm.RELEASES):
        assert monitor.find_stuck_jobs(["5", "7_2"]) == {}  # 6 is not this pipeline's
    assert "could not start job 5 in 4 attempts; see sinfo -R" in monitor.find_stuck_jobs(["5", "7_2"])["5"]
    assert commands.read_text().splitlines() == ["scontrol release 5"] * 3 + ["scancel 5"]


@pytest.fixture
def clock(monkeypatch):
    """Advance the clock by half a minute per poll."""
    times = iter(range(0, 3000, 30))
    monkeypatch.setattr(slurm.time, "monotonic", lambda: next(times))


def test_find_stuck_jobs_of_an_ended_job_reports_it_after_a_while(squeue, commands, clock):
    """Check states for which the plugin waits on: preempted, or a failed node without requeue."""
    (squeue / "listed").write_text("5|PREEMPTED|None\n6|NODE_FAIL|NodeDown\n7_2|COMPLETED|None\n")
    monitor = slurm.JobMonitor()
    assert [monitor.find_stuck_jobs(["5", "7_2"]) for _ in range(2)] == [{}, {}]
    given_up = monitor.find_stuck_jobs(["5", "6", "7_2"])
    assert given_up == {"5": "SLURM-job '5' failed, SLURM status is: 'PREEMPTED'"}
    assert monitor.end_state("5") in slurm.INTERRUPTED


def test_find_stuck_jobs_of_a_job_already_done_cancels_it(squeue, commands):
    (squeue / "listed").write_text("5|PENDING|BeginTime\n6|RUNNING|None\n7_2|COMPLETED|None\n8|RUNNING|None\n")
    # 8: another job under the same number
    assert slurm.JobMonitor().find_stuck_jobs(["8"], done={"5", "7_2", "8", "9"}) == {}
    assert commands.read_text() == "scancel 5\n"


def test_find_stuck_jobs_with_sacct_gives_up_cancelled_jobs_only(squeue, commands, clock):
    (squeue / "listed").write_text("5|PENDING|launch failed requeued held\n")
    sacct = squeue / "bin" / "sacct"
    sacct.write_text("#!/bin/sh\necho $* >> $0.asked; echo '8|CANCELLED by 1000'; echo '9|COMPLETED'\n")
    sacct.chmod(0o755)
    monitor = slurm.JobMonitor()
    assert [monitor.find_stuck_jobs(["5", "8", "9", "10"], by_sacct=True) for _ in range(2)] == [{}, {}]
    given_up = monitor.find_stuck_jobs(["5", "8", "9", "10"], by_sacct=True)
    assert given_up == {"8": "SLURM-job '8' failed, SLURM status is: 'CANCELLED'"}
    assert commands.read_text().splitlines() == ["scontrol release 5"] * 3
    assert "--jobs=8,9,10" in sacct.with_name("sacct.asked").read_text()


# --- the executor, over a plugin in its place --------------------------------------------------------------------------------


class Upstream:
    """The used members of the plugin's executor."""

    run_uuid, _submitted_job_clusters, workflow = "shapes_1", set(), None

    def __init__(self):
        self._interrupted, self._reported, self._cancelled = Counter(), set(), threading.Event()
        self._monitor = slurm.JobMonitor()
        self.errors, self.logged, self.shut_down = [], [], {}
        self.logger = SimpleNamespace(error=self.logged.append)
        self._job_submission_executor = SimpleNamespace(shutdown=self.shut_down.update)

    def run_job(self, job):
        try:
            raise slurm.WorkflowError("The given account appears to be invalid.")
        except Exception:
            raise AttributeError(job.rule.name) from None

    def _report_job_error_threadsafe(self, job_info, message):
        self.errors.append((job_info.job, message))

    def report_job_error(self, job_info, msg=None):
        self.errors.append((job_info.job, msg))


class Job:
    def is_group(self):
        return True


def make_job(**resources):
    job = Job()
    job.resources, job.attempt, job.jobs = resources, 1, []
    return job


def test_run_job_of_a_group_that_sbatch_rejects_fails_it():
    executor, job = slurm._make(Upstream, "shapes")(), make_job()
    executor.run_job(job)
    why = "Job submission failed: The given account appears to be invalid."
    assert executor.errors == [(job, why)]
    executor.report_job_error(SimpleNamespace(job=job, external_jobid=None), msg=why)
    assert executor.logged == [why]  # as Snakemake itself does of single jobs alone


def test_report_job_error_of_an_interruption_uses_no_retry_up_to_the_cap(squeue, commands):
    executor, job = slurm._make(Upstream, "shapes")(), make_job(continuations=2)
    attempts = []
    for end in ("TIMEOUT", "FAILED", "NODE_FAIL", "TIMEOUT", "TIMEOUT"):
        job.attempt += 1  # as Snakemake does after it
        (squeue / "listed").write_text(f"5|{end}|None\n")
        executor.report_job_error(SimpleNamespace(job=job, external_jobid="5"), msg="the plugin's")
        attempts.append(job.attempt)
    assert attempts == [1, 2, 2, 3, 4]


def test_cancel_jobs_cancels_by_name(squeue, commands):
    executor = slurm._make(Upstream, "shapes")()
    executor.cancel_jobs([])
    assert commands.read_text() == "scancel --name=shapes_1\n"
    assert executor.shut_down == {"wait": True, "cancel_futures": True}
    assert executor._cancelled.is_set()


def test_executor_touches_only_the_listed_private_members():
    # tests/slurm checks the plugin itself
    lock = (Path(__file__).parents[2] / "requirements-slurm.lock").read_text()
    assert f"snakemake-executor-plugin-slurm=={slurm.READ_IN} " in lock
    own = set(re.findall(r"self\.(_\w+) = ", inspect.getsource(slurm)))
    used = set(re.findall(r"self\.(_\w+)", inspect.getsource(slurm._make)))
    assert used - own == set(slurm.TOUCHED)

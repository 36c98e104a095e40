"""Extend snakemake-executor-plugin-slurm for a pipeline of long jobs.

A killed Snakemake leaves its jobs running, and started again it would submit them a second time. Here a job that makes the same
files waits in the queue until the first one has ended: a distillation then resumes its checkpoint, and no GPU idles meanwhile.
(The plugin registers job ids with Snakemake, but each job's own Snakemake overwrites them.) The plugin also polls ever less often,
up to 180 s apart. It loses track of jobs while the controller does not answer, and forever if the controller forgets or holds
them, if they were preempted, if their node failed and they may not be requeued, or if sacct adds who cancelled them.
"""

import json
import re
import shutil
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection
from pathlib import Path

from snakemake_interface_common.exceptions import WorkflowError
from snakemake_interface_executor_plugins.executors.base import SubmittedJobInfo
from snakemake_interface_executor_plugins.registry import ExecutorPluginRegistry

NAME = "slurm"
LOST = "LOST"  # our state of a job that Slurm does not list
READ_IN = "2.8.0"  # of the plugin, whose private members are TOUCHED; tests/slurm/test_plugin.py notices a change
TOUCHED = ("_job_submission_executor", "_submitted_job_clusters", "_report_job_error_threadsafe")
INTERRUPTED = {"TIMEOUT", "NODE_FAIL", "PREEMPTED", LOST}  # states after which `launch` continues
FAILED = {"BOOT_FAIL", "CANCELLED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "TIMEOUT"}
UNENDED = {"PENDING", "CONFIGURING", "RUNNING", "REQUEUED", "REQUEUE_HOLD", "SUSPENDED"}
PATIENCE_S = 3600  # until an unavailable controller is an error
LOST_S = 60  # until a job that Slurm does not list, or lists as failed, is given up if the plugin has not done so
HELD = "launch failed requeued held"  # reason in squeue: a node failed while the job started, and Slurm holds it
RELEASES = 3  # of a job held for that reason


def adapt(experiment: str) -> None:
    """Adapt the plugin's jobs to wait for those of a killed Snakemake and to carry the experiment's name."""
    plugin = ExecutorPluginRegistry().plugins.get(NAME)
    if plugin:
        plugin.executor = _make(plugin.executor, re.sub(r"[^A-Za-z0-9_-]", "_", experiment)[:50])


def _make(upstream: type, prefix: str) -> type:
    class Executor(upstream):
        def __post_init__(self, test_mode: bool = False) -> None:
            self.workflow.executor_settings.jobname_prefix = self.workflow.executor_settings.jobname_prefix or prefix
            super().__post_init__(test_mode)
            self._reported = set()  # jobs whose end was reported in this poll
            self._done = set()  # ids of successful jobs
            self._interrupted = Counter()  # by job
            self._cancelled = threading.Event()
            self._monitor = JobMonitor()
            self._registry = JobRegistry(Path(self.workflow.workdir_init) / ".snakemake" / "slurm_jobs.jsonl")

        def run_job(self, job) -> None:
            if job.is_group():  # the plugin's comment shows a group's wildcards if it has them
                values = (value for member in sorted(job.jobs, key=str) for value in member.wildcards)
                job.wildcards = list(dict.fromkeys(values))
            try:
                super().run_job(job)
            except Exception as error:  # the plugin's handler names the job's rule, and a group has none
                cause = error.__context__ or error
                self._report_job_error_threadsafe(SubmittedJobInfo(job), f"Job submission failed: {cause}")

        def get_partition_arg(self, job) -> str:
            # sbatch gives up on a controller after 9 s, which would count as a failure of the job
            ask_squeue("--me", wait=self._cancelled.wait)
            return super().get_partition_arg(job) + self._registry.dependency(job.output)

        def report_job_submission(self, job_info, register_job: bool = True) -> None:
            self._registry.note(job_info.external_jobid, job_info.job.output)
            super().report_job_submission(job_info, register_job)

        async def check_active_jobs(self, active_jobs: list):
            if not active_jobs:  # the polling thread starts before __post_init__, and an exception would end it
                return
            self._reported = set()
            async for _ in super().check_active_jobs(active_jobs):
                pass  # without an answer of Slurm the plugin forgets jobs, and Snakemake waits forever
            open_jobs = [job_info for job_info in active_jobs if job_info.job not in self._reported]
            by_sacct = self.get_status_command() == "sacct" and shutil.which("sacct") is not None  # as upstream does
            stuck = {}
            if open_jobs:  # those of an earlier Snakemake too: ours wait for them
                ids = [*self._registry.before, *(job_info.external_jobid for job_info in open_jobs)]
                stuck = self._monitor.find_stuck_jobs(ids, self._done, by_sacct)
            for job_info in open_jobs:
                if job_info.external_jobid in stuck:
                    self.report_job_error(job_info, msg=stuck[job_info.external_jobid])
                else:
                    yield job_info

        def report_job_success(self, job_info) -> None:
            self._reported.add(job_info.job)
            self._done.add(job_info.external_jobid)
            super().report_job_success(job_info)

        def report_job_error(self, job_info, msg: str | None = None, **given) -> None:
            job = job_info.job
            if job.is_group() and msg:  # Snakemake prints the jobs of a group, but not the error
                self.logger.error(msg)
            # `launch` continues interrupted jobs, and counts them where it gets to start; retries are left for failures
            left = (job.resources.get("continuations") or 0) - self._interrupted[job]
            if left > 0 and self._monitor.end_state(job_info.external_jobid) in INTERRUPTED:
                self._interrupted[job] += 1
                job.attempt -= 1
            self._reported.add(job)
            super().report_job_error(job_info, msg=msg, **given)

        def cancel_jobs(self, active_jobs: list) -> None:
            """Cancel all jobs of this Snakemake by name, since jobs being polled or submitted are in no list."""
            self._cancelled.set()
            self._job_submission_executor.shutdown(wait=True, cancel_futures=True)
            everywhere = ["--clusters=all"] if self._submitted_job_clusters else []
            command = ["scancel", f"--name={self.run_uuid}", *everywhere]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode != 0:
                self.logger.error(f"{done.stderr.strip()}; jobs may still run. Fix: {' '.join(command)}")

        @property
        def next_seconds_between_status_checks(self) -> int:
            return self.workflow.executor_settings.init_seconds_before_status_checks

        @next_seconds_between_status_checks.setter
        def next_seconds_between_status_checks(self, value: int) -> None:
            """Ignore the plugin's growing periods between polls."""

    return Executor


class JobMonitor:
    """Monitor of jobs that Slurm does not list, holds, or ended unnoticed."""

    def __init__(self):
        self._gone_since_s: dict[str, float] = {}
        self._released: dict[str, int] = {}
        self._lost: set[str] = set()

    def end_state(self, job: str | None) -> str | None:
        """Return Slurm's state of an ended job, or LOST; None without an answer."""
        if job is None or job in self._lost:
            return LOST if job else None
        listed = _listed() or {}
        return listed[job][0] if job in listed else _ask_sacct([job]).get(job)

    def find_stuck_jobs(self, jobs: list[str], done: Collection[str] = (), by_sacct: bool = False) -> dict[str, str]:
        """Return the `jobs` to give up and the reasons, after releasing those that Slurm could not start.

        A controller that crashed may start jobs again that are `done`: they are cancelled, as others read their files.
        `by_sacct`: sacct may list, perhaps later, jobs that squeue forgot: such jobs are not lost.
        """
        listed = _listed()
        if listed is None:
            return {}
        states = {job: state for job, (state, _) in listed.items()}
        restarted = [job for job in done if states.get(job) in UNENDED and job not in jobs]  # Slurm may reuse an id
        if restarted:
            subprocess.run(["scancel", *restarted])
        if by_sacct:
            states = _ask_sacct([job for job in jobs if job not in states]) | states
        now_s = time.monotonic()
        gone = [job for job in jobs if states.get(job) in FAILED or not (by_sacct or job in states)]
        self._gone_since_s = {job: self._gone_since_s.get(job, now_s) for job in gone}
        given_up = {
            job: f"SLURM-job '{job}' failed, SLURM status is: '{states[job]}'"
            if job in states
            else f"Slurm does not list job {job}: a controller that crashes forgets its last jobs"
            for job, since_s in self._gone_since_s.items()
            if now_s - since_s >= LOST_S
        }
        self._lost |= given_up.keys() - states.keys()
        for job in (job for job in jobs if listed.get(job, ("", ""))[1] == HELD):
            self._released[job] = self._released.get(job, 0) + 1
            if self._released[job] <= RELEASES:
                subprocess.run(["scontrol", "release", job])
            else:
                subprocess.run(["scancel", job])
                given_up[job] = f"Slurm could not start job {job} in {self._released[job]} attempts; see sinfo -R"
        return given_up


class JobRegistry:
    """Slurm jobs and the files they make, a line each; `before`: jobs of an earlier Snakemake that still run or wait."""

    def __init__(self, path: Path):
        self._path = path
        lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
        entries = [json.loads(line) for line in lines if line.endswith("}")]  # a kill may cut the last line
        alive = set(ask_squeue("--me", "--array", "--format=%i").split()) if entries else set()
        entries = [entry for entry in entries if entry["job"] in alive]
        self._makers = {name: entry["job"] for entry in entries for name in entry["output"]}
        self.before = sorted({entry["job"] for entry in entries})
        path.write_text("".join(json.dumps(entry) + "\n" for entry in entries), encoding="utf-8")

    def note(self, job: str, output: list[str]) -> None:
        with open(self._path, "a", encoding="utf-8") as file:
            file.write(json.dumps({"job": job, "output": [str(name) for name in output]}) + "\n")

    def dependency(self, output: list[str]) -> str:
        """Return sbatch's option to wait for earlier jobs that make these files; empty without any."""
        jobs = sorted({self._makers[name] for name in map(str, output) if name in self._makers})
        return f" --dependency=afterany:{':'.join(jobs)}" if jobs else ""


def _listed() -> dict[str, tuple[str, str]] | None:
    """Return state and reason of this user's jobs, including recently ended ones; None without an answer."""
    command = ["squeue", "--noheader", "--me", "--array", "--states=all", "--format=%i|%T|%r"]
    asked = subprocess.run(command, capture_output=True, text=True)
    if asked.returncode != 0:
        return None
    lines = (line.split("|", 2) for line in asked.stdout.splitlines())
    return {job: (state, reason) for job, state, reason in lines}


def _ask_sacct(jobs: list[str]) -> dict[str, str]:
    """Return the states of the jobs that sacct lists, without who cancelled them."""
    if not jobs or shutil.which("sacct") is None:
        return {}
    command = ["sacct", "-X", "--noheader", "--parsable2", "--format=JobID,State", f"--jobs={','.join(jobs)}"]
    asked = subprocess.run(command, capture_output=True, text=True)
    lines = asked.stdout.splitlines() if asked.returncode == 0 else []
    return {job: state.split()[0] for job, _, state in (line.partition("|") for line in lines) if state}


def ask_squeue(*options: str, wait: Callable[[float], bool | None] = time.sleep) -> str:
    """Return squeue's output, or raise WorkflowError if there is none for too long, or `wait` returned true in between."""
    deadline = None
    while True:
        asked = subprocess.run(["squeue", "--noheader", *options], capture_output=True, text=True)
        if asked.returncode == 0:
            return asked.stdout
        problem = f"squeue: {asked.stderr.strip()}"
        if deadline is None:
            print(f"{problem}; waiting for Slurm to answer, for up to {PATIENCE_S // 60} minutes", file=sys.stderr)
            deadline = time.monotonic() + PATIENCE_S
        if wait(5) or time.monotonic() > deadline:
            raise WorkflowError(f"{problem}; run again when Slurm answers")

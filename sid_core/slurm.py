"""What snakemake-executor-plugin-slurm leaves open, for a pipeline of long jobs; the plugin does the rest.

Snakemake that is killed leaves its jobs running, and started again it would submit them a second time. Here a job that makes
the same files waits in the queue until the first one has ended: a distillation then finds a state that is finished, or goes
on with it, and no GPU idles meanwhile. (The plugin registers job ids with Snakemake, but each job's own Snakemake writes over
them.) The plugin also looks ever more seldom, up to 180 s apart, so that the end of a long job goes unnoticed for minutes, and
loses its jobs from sight when the controller does not answer for a while, or for ever when it forgets them or holds them back.
"""

import json
import re
import subprocess
import time
from pathlib import Path

from snakemake_interface_common.exceptions import WorkflowError
from snakemake_interface_executor_plugins.registry import ExecutorPluginRegistry

NAME = "slurm"
INTERRUPTED = re.compile("'(TIMEOUT|NODE_FAIL|PREEMPTED)'")  # in the plugin's messages
PATIENCE_S = 3600  # with a controller that does not answer
LOST_S = 60  # after which a job that Slurm does not list is taken for lost
HELD = "launch failed requeued held"  # by squeue: a node failed while the job began, and Slurm waits for somebody to release it
RELEASES = 3  # of a job that is held for that


def adapt(experiment: str) -> None:
    """Let the plugin's jobs go on from those of a killed Snakemake, and bear the experiment's name. Call in the Snakefile."""
    plugin = ExecutorPluginRegistry().plugins.get(NAME)
    if plugin:  # it is optional
        plugin.executor = _make(plugin.executor, re.sub(r"[^A-Za-z0-9_-]", "_", experiment)[:50])


def _make(upstream: type, prefix: str) -> type:
    class Executor(upstream):
        def __post_init__(self, test_mode: bool = False) -> None:
            self.workflow.executor_settings.jobname_prefix = self.workflow.executor_settings.jobname_prefix or prefix
            super().__post_init__(test_mode)
            self._told = set()  # jobs whose end this round has told
            self._watch = Watch()
            self._book = Book(Path(self.workflow.workdir_init) / ".snakemake" / "slurm_jobs.jsonl")

        def run_job(self, job) -> None:
            if job.is_group():  # the plugin's comment names a group's rules, and its wildcards where it has them
                job.wildcards = list(
                    dict.fromkeys(value for one in sorted(job.jobs, key=str) for value in one.wildcards)
                )
            super().run_job(job)

        def get_partition_arg(self, job) -> str:
            ask_squeue("--me")  # sbatch gives up after 9 s, and that would count as a failure of the job
            return super().get_partition_arg(job) + self._book.dependency(job.output)

        def report_job_submission(self, job_info, register_job: bool = True) -> None:
            self._book.note(job_info.external_jobid, job_info.job.output)
            super().report_job_submission(job_info, register_job)

        async def check_active_jobs(self, active_jobs: list):
            if not active_jobs:  # the checking thread begins before __post_init__, and what it raises ends it for good
                return
            self._told = set()
            async for _ in super().check_active_jobs(active_jobs):
                pass  # where Slurm did not answer, the plugin forgets the others, and Snakemake waits for ever
            open_jobs = [job_info for job_info in active_jobs if job_info.job not in self._told]
            ids = [job_info.external_jobid for job_info in open_jobs]
            # sacct may lag behind: what it has not told yet, squeue may have forgotten by right
            forgotten_is_lost = self.get_status_command() == "squeue"
            # ours wait for those before
            given_up = self._watch.look([*self._book.before, *ids], forgotten_is_lost) if ids else {}
            for job_info in open_jobs:
                if job_info.external_jobid in given_up:
                    self.report_job_error(job_info, msg=given_up[job_info.external_jobid])
                else:
                    yield job_info

        def report_job_success(self, job_info) -> None:
            self._told.add(job_info.job)
            super().report_job_success(job_info)

        def report_job_error(self, job_info, msg: str | None = None, **given) -> None:
            # `launch` continues these and counts them; Snakemake's retries are left for failures. Upstream, an executor would say so
            if job_info.job.resources.get("continuations") and INTERRUPTED.search(msg or ""):
                job_info.job.attempt -= 1
            self._told.add(job_info.job)
            super().report_job_error(job_info, msg=msg, **given)

        @property
        def next_seconds_between_status_checks(self) -> int:
            return self.workflow.executor_settings.init_seconds_before_status_checks

        @next_seconds_between_status_checks.setter
        def next_seconds_between_status_checks(self, value: int) -> None:
            """The plugin's growing periods."""

    return Executor


class Watch:
    """Jobs that would never end: Slurm does not list them although it answers, or holds them back."""

    def __init__(self):
        self._unseen_since_s: dict[str, float] = {}
        self._released: dict[str, int] = {}

    def look(self, jobs: list[str], forgotten_is_lost: bool = True) -> dict[str, str]:
        """Those of `jobs` that are to be given up, with the reason; what Slurm could not start is released before."""
        command = ["squeue", "--noheader", "--me", "--array", "--states=all", "--format=%i %r"]
        asked = subprocess.run(command, capture_output=True, text=True)
        if asked.returncode != 0:
            return {}
        reasons = {job: reason for job, _, reason in (line.partition(" ") for line in asked.stdout.splitlines())}
        now_s = time.monotonic()
        unseen = [job for job in jobs if job not in reasons] if forgotten_is_lost else []
        self._unseen_since_s = {job: self._unseen_since_s.get(job, now_s) for job in unseen}
        given_up = {
            job: f"Slurm knows nothing of job {job}: a controller that crashes forgets its last ones"
            for job, since_s in self._unseen_since_s.items()
            if now_s - since_s >= LOST_S
        }
        for job in (job for job in jobs if reasons.get(job) == HELD):
            self._released[job] = self._released.get(job, 0) + 1
            if self._released[job] <= RELEASES:
                subprocess.run(["scontrol", "release", job])
            else:
                subprocess.run(["scancel", job])
                given_up[job] = f"Slurm could not start job {job} in {self._released[job]} attempts; sinfo -R tells why"
        return given_up


class Book:
    """Which Slurm job makes which files, one line a job; kept beside Snakemake's own records.

    Attributes:
        before: jobs of an earlier Snakemake that had not ended when this one started.
    """

    def __init__(self, path: Path):
        self._path = path
        lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
        entries = [json.loads(line) for line in lines if line.endswith("}")]  # a killed Snakemake may leave half a line
        alive = _in_queue() if entries else set()
        entries = [entry for entry in entries if entry["job"] in alive]
        self._makers = {name: entry["job"] for entry in entries for name in entry["output"]}
        self.before = sorted({entry["job"] for entry in entries})
        path.write_text("".join(json.dumps(entry) + "\n" for entry in entries), encoding="utf-8")

    def note(self, job: str, output: list[str]) -> None:
        with open(self._path, "a", encoding="utf-8") as file:
            file.write(json.dumps({"job": job, "output": [str(name) for name in output]}) + "\n")

    def dependency(self, output: list[str]) -> str:
        """sbatch's option to wait for those who made these files when this Snakemake started; nothing where nobody did."""
        jobs = sorted({self._makers[name] for name in map(str, output) if name in self._makers})
        return f" --dependency=afterany:{':'.join(jobs)}" if jobs else ""


def _in_queue() -> set[str]:
    """Ids of this user's jobs that have not ended."""
    return set(ask_squeue("--me", "--array", "--format=%i").split())


def ask_squeue(*options: str) -> str:
    """What squeue says, without its header; waits for a controller that is away.

    Raises:
        WorkflowError: it is away for too long.
    """
    deadline = time.monotonic() + PATIENCE_S
    while True:
        asked = subprocess.run(["squeue", "--noheader", *options], capture_output=True, text=True)
        if asked.returncode == 0:
            return asked.stdout
        if time.monotonic() > deadline:
            raise WorkflowError(f"squeue: {asked.stderr.strip()}; run again when Slurm answers")
        time.sleep(5)

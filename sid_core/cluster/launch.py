"""Start the processes of a training job, stop them before its time limit, and requeue the job.

    python -m sid_core.cluster.launch --gpus 16 --nodes 2 --state STATE … -- distill --settings … --state STATE …

One process starts directly, several start by torchrun, those of several nodes by srun and a torchrun on each. Any signal makes
them save a checkpoint and exit. A Slurm job stops `save_s` before its time limit and is requeued by `scontrol requeue`: to
Snakemake it is still the same job, so that its retries are left for failures. Where a cluster forbids that, the job waits for
its time limit, and Snakemake submits another.
"""

import argparse
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

from ..errors import UserError, log_to_stderr
from ..storage import job_record
from ..storage.files import read_json, write_json
from ..storage.states import ENDED, saved_record, saved_states
from . import gpus
from .machine import SUBMITTER_CALL, ask

log = logging.getLogger(__name__)
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)
POLL_S = 300  # between polls of a job's time limit, which an operator may change
ANSWER_S = 60  # timeout of a Slurm command, and of Slurm ending a job that was requeued or is out of time


def main(arguments: list[str] | None = None) -> int:
    """Run a training's job and return 0, the training's exit code, or 128 + the signal that stopped it."""
    given = _parser().parse_args(arguments)
    log_to_stderr()
    job_record.begin()
    try:
        history = AttemptHistory(given.state, given.attempt, given.continuations)
        with gpus.acquire_gpus(given.gpus) as held:
            job = Job(make_command(given.stage, given.gpus, given.nodes, given.threads), held)
            code = job.wait(given.save_s)
        if code == 0:
            history.clear()
        elif job.out_of_time:
            history.check_progress()
            requeue(given.state.name, given.save_s)
        return code
    except UserError as error:
        job_record.fail(str(error))
        return 1


def make_command(stage: list[str], gpu_count: int, nodes: int, threads: int) -> list[str]:
    """Return the command that starts one process per GPU, or one per node if there are no GPUs."""
    if gpu_count and gpu_count % nodes:
        raise UserError(f"resources.distill.gpu={gpu_count}: expected a multiple of nodes={nodes}")
    per_node = max(gpu_count // nodes, 1)
    python, module = [sys.executable, "-m"], ["sid_core", *stage]
    if nodes == per_node == 1:
        return python + module
    torchrun = [*python, "sid_core.cluster.torchrun", f"--nproc-per-node={per_node}"]
    if nodes == 1:
        return [*torchrun, "--standalone", "-m", *module]
    job = os.environ.get("SLURM_JOB_ID")
    if job is None:
        raise UserError(f"resources.distill.nodes={nodes}: only a Slurm job has several; expected 1 here")
    with socket.socket() as probe:  # this is the job's first node, where all torchruns rendezvous
        probe.bind(("", 0))
        endpoint = f"{socket.gethostname()}:{probe.getsockname()[1]}"
    rendezvous = ["--rdzv-backend=c10d", f"--rdzv-endpoint={endpoint}", f"--rdzv-id={job}"]
    srun = ["srun", f"--nodes={nodes}", f"--ntasks={nodes}", f"--cpus-per-task={threads}", "--kill-on-bad-exit=1"]
    return [*srun, *torchrun, f"--nnodes={nodes}", *rendezvous, "-m", *module]


class Job:
    """The processes of a training, as one child of this one; `out_of_time`: stopped for the job's time limit."""

    def __init__(self, command: list[str], held: list[int]):
        self.out_of_time, self._signum, self._child = False, 0, None
        for signum in SIGNALS:
            signal.signal(signum, self._stop)
        self._child = subprocess.Popen(command, stdin=subprocess.DEVNULL, pass_fds=held)
        if self._signum:
            self._child.send_signal(signal.SIGUSR1)

    def wait(self, save_s: float) -> int:
        """Wait for all processes, stop them `save_s` before the job's time limit, and return the exit code."""
        code = end_s = None
        while code is None:
            end = _ask_squeue("%e")
            end_s = int(end) if end.isdigit() else end_s
            left_s = end_s - time.time() - save_s if end_s else POLL_S
            if left_s <= 0 and not self._signum:
                self.out_of_time = True
                self._stop(signal.SIGUSR1)
            with suppress(subprocess.TimeoutExpired):
                polls = "SLURM_JOB_ID" in os.environ and not self._signum
                code = self._child.wait(min(left_s, POLL_S) if polls else None)
        if self._signum:
            return code and 128 + self._signum
        if code < 0:
            job_record.fail(f"the training was ended by {signal.Signals(-code).name}")
        return code if code >= 0 else 128 - code

    def _stop(self, signum: int, _: object = None) -> None:
        """Request a checkpoint once, although a cluster may signal every process of a job several times."""
        if not self._signum:
            self._signum = signum
            if self._child:
                self._child.send_signal(signal.SIGUSR1)


class AttemptHistory:
    """Attempts of one Snakemake call on a state folder: requeued jobs and retries. Without Snakemake each begins anew."""

    def __init__(self, state: Path, attempt: int, most: int):
        self._path, self._state = state / "starts.json", state
        self._newest, from_nimg = _newest(state)
        attempts = read_json(self._path) if self._path.is_file() else []
        call = os.environ.get(SUBMITTER_CALL)
        if attempts and attempt == 1 and (not call or attempts[-1]["call"] != call):
            attempts = []
        ended = read_json(state / ENDED) if attempt > 1 and (state / ENDED).is_file() else {}
        if ended.get("how") == "aborted":  # a retry computes the same numbers
            raise UserError(f"{ended['why']} (a retry would end as the first one did)")
        if len(attempts) > most:
            raise UserError(
                f"{state.name}: continued {most} times and not done, at {from_nimg:,} nimg; expected at most "
                f"resources.distill.continuations={most}. Fix: run snakemake again, which resumes it"
            )
        if attempts:
            log.info(f"{state.name}: continuation {len(attempts)} of at most {most}, from {from_nimg:,} nimg")
        job = os.environ.get("SLURM_JOB_ID")
        this = {"from_nimg": from_nimg, "call": call, "job": job, "host": socket.gethostname()}
        write_json(self._path, [*attempts, this | {"time_s": round(time.time())}])

    def check_progress(self) -> None:
        """Raise UserError if this attempt saved no checkpoint: attempts without progress would repeat to the limit."""
        if _newest(self._state)[0] == self._newest:
            text = f"{self._state.name}: its time was up before half an iteration was done"
            raise UserError(f"{text}. Fix: raise resources.distill.runtime, or lower its save_s")

    def clear(self) -> None:
        """Delete the history of attempts after the training is done."""
        self._path.unlink(missing_ok=True)


def _newest(state: Path) -> tuple[Path | None, int]:
    """Return the newest readable checkpoint and the number of images it has seen, or (None, 0)."""
    for saved in saved_states(state):
        with suppress(UserError):
            return saved, saved_record(saved)["nimg"]
    return None, 0


def requeue(run: str, left_s: float) -> None:
    """Requeue this job and wait for Slurm to end it; a user's own script must not restart by itself."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    comment = _ask_squeue("%k")  # empty where Slurm does not answer, and then it requeues nothing either
    if comment and not comment.startswith("rule_"):
        raise UserError(f"{run}: stopped before the time limit of this job; running again continues")
    log.info("%s: stopped before its time limit, requeued to continue", run)
    _, problem = ask("scontrol", "requeue", os.environ["SLURM_JOB_ID"], timeout_s=ANSWER_S)
    if problem is not None:
        log.info("%s: not requeued (%s), waiting for the time limit", run, problem)
        time.sleep(left_s)
    time.sleep(ANSWER_S)


def _ask_squeue(field: str) -> str:
    """Return a field of this job, times in seconds since 1970; empty outside of Slurm or without an answer."""
    job = os.environ.get("SLURM_JOB_ID")
    return ask("squeue", "--noheader", "--jobs", job, "--format", field, timeout_s=ANSWER_S)[0] if job else ""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m sid_core.cluster.launch", description=__doc__.splitlines()[0])
    parser.add_argument("--gpus", type=int, default=0, help="of all nodes together; a process trains on each")
    parser.add_argument("--nodes", type=int, default=1, help="of the Slurm job")
    parser.add_argument("--threads", type=int, default=1, help="CPUs of a node's processes together")
    parser.add_argument("--state", type=Path, required=True, help="folder of the training state")
    parser.add_argument("--attempt", type=int, default=1, help="Snakemake's; above 1: a retry")
    parser.add_argument("--continuations", type=int, default=100, help="maximum, in a row")
    parser.add_argument("--save-s", type=float, default=180, help="seconds before the time limit, for saving")
    parser.add_argument("stage", nargs="+", help="-- and the arguments of sid_core")
    return parser


if __name__ == "__main__":
    sys.exit(main())

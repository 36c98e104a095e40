"""Start the processes of a training job, stop them before its time limit, and requeue the job.

    python -m sid_core.cluster.launch --gpus 16 --nodes 2 --state STATE … -- distill --settings … --state STATE …

One process is started as it is, several by torchrun, those of several machines by srun and a torchrun on each. Any signal
asks them to save and to end. A Slurm job is stopped `save_s` before its time limit and put back into the queue by
`scontrol requeue`: to Snakemake it is still the same job, so that its retries are left for failures. Where a cluster refuses
that, the job waits for its time limit, and Snakemake submits another.
"""

import argparse
import contextlib
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

from ..errors import UserError, log_to_stderr
from ..storage import job_record
from ..storage.files import read_json, write_json
from ..storage.states import saved_record, saved_states
from . import gpus
from .machine import SUBMITTER_CALL

log = logging.getLogger(__name__)
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)
LOOK_S = 300  # between two looks at a job's time limit, which an operator may change while it runs
ANSWER_S = 60  # within which a Slurm command answers, and Slurm ends a job that was put back or is out of time


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
    """Return the command that starts one process per GPU, or one per node if there are no GPUs.

    Raises:
        UserError: the GPUs do not divide evenly among the nodes, or there are several nodes outside of Slurm.
    """
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
    # this is the first node of the job; all torchruns meet here
    meet = ["--rdzv-backend=c10d", f"--rdzv-endpoint={socket.gethostname()}:{_free_port()}", f"--rdzv-id={job}"]
    srun = ["srun", f"--nodes={nodes}", f"--ntasks={nodes}", f"--cpus-per-task={threads}", "--kill-on-bad-exit=1"]
    return [*srun, *torchrun, f"--nnodes={nodes}", *meet, "-m", *module]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return probe.getsockname()[1]


class Job:
    """The processes of a training, as one child of this one.

    Attributes:
        out_of_time: whether they were stopped for the job's time limit.
    """

    def __init__(self, command: list[str], held: list[int]):
        self.out_of_time, self._signum, self._child = False, 0, None
        for signum in SIGNALS:
            signal.signal(signum, self._note)
        self._child = subprocess.Popen(command, stdin=subprocess.DEVNULL, pass_fds=held)
        if self._signum:
            self._child.send_signal(signal.SIGUSR1)

    def wait(self, save_s: float) -> int:
        """Wait for all processes, stop them `save_s` before the job's time limit, and return the exit code."""
        code = end_s = None
        while code is None:
            end_s = _job_end_s() or end_s
            left_s = end_s - time.time() - save_s if end_s else LOOK_S
            if left_s <= 0 and not self._signum:
                self.out_of_time = True
                self._note(signal.SIGUSR1)
            with contextlib.suppress(subprocess.TimeoutExpired):
                code = self._child.wait(None if self._signum or not _in_slurm() else min(left_s, LOOK_S))
        if self._signum:
            return code and 128 + self._signum
        if code < 0:
            job_record.fail(f"the training was ended by {signal.Signals(-code).name}")
        return code if code >= 0 else 128 - code

    def _note(self, signum: int, _: object = None) -> None:
        """Request a checkpoint once, although a cluster may signal every process of a job several times."""
        if not self._signum:
            self._signum = signum
            if self._child:
                self._child.send_signal(signal.SIGUSR1)


# --- going on --------------------------------------------------------------------------------------------------------


class AttemptHistory:
    """Attempts of one Snakemake call on a state folder, stored in its starts.json: requeued jobs and retries.

    Outside of Snakemake every attempt begins a new history.

    Raises:
        UserError: there are too many attempts, or this is a retry of a training that a limit stopped.
    """

    def __init__(self, state: Path, attempt: int, most: int):
        self._path, self._state = state / "starts.json", state
        self._newest, from_nimg = _newest(state)
        row = read_json(self._path) if self._path.is_file() else []
        call = os.environ.get(SUBMITTER_CALL)
        if row and attempt == 1 and (not call or row[-1]["call"] != call):
            row = []
        if attempt > 1:
            _refuse_what_was_stopped(state)
        if len(row) > most:
            raise UserError(
                f"{state.name}: continued {most} times and not done, at {from_nimg:,} nimg; expected at most "
                f"resources.distill.continuations={most}. Running snakemake again goes on"
            )
        if row:
            log.info("%s: continuation %d of at most %d, from %s nimg", state.name, len(row), most, f"{from_nimg:,}")
        job = os.environ.get("SLURM_JOB_ID")
        this = {"from_nimg": from_nimg, "call": call, "job": job, "host": socket.gethostname()}
        write_json(self._path, [*row, this | {"time_s": round(time.time())}])

    def check_progress(self) -> None:
        """Check that this attempt saved a checkpoint, since attempts without progress would repeat to the limit.

        Raises:
            UserError: nothing was saved since this attempt began.
        """
        if _newest(self._state)[0] == self._newest:
            raise UserError(
                f"{self._state.name}: its time was up before half an iteration was done; raise resources.distill.runtime, "
                "or lower save_s beside it"
            )

    def clear(self) -> None:
        """Delete the history of attempts after the training is done."""
        self._path.unlink(missing_ok=True)


def _newest(state: Path) -> tuple[Path | None, int]:
    """Return the newest readable checkpoint and the number of images it has seen, or (None, 0)."""
    for saved in saved_states(state):
        with contextlib.suppress(UserError):
            return saved, saved_record(saved)["nimg"]
    return None, 0


def _refuse_what_was_stopped(state: Path) -> None:
    """Reject the retry of an aborted training, which would compute the same numbers and abort again."""
    mark = state / "ended.json"
    ended = read_json(mark) if mark.is_file() else {}
    if ended.get("how") == "aborted":
        raise UserError(f"{ended['why']} (a retry would end as the first one did)")


# --- Slurm -----------------------------------------------------------------------------------------------------------


def _in_slurm() -> bool:
    return "SLURM_JOB_ID" in os.environ


def _job_end_s() -> int | None:
    """Return this job's end in seconds since 1970, or None outside of Slurm or if squeue reports no time."""
    end = _ask_squeue("%e")
    return int(end) if end.isdigit() else None


def requeue(run: str, left_s: float) -> None:
    """Requeue this job and wait for Slurm to end it.

    Raises:
        UserError: Snakemake did not submit this job: a user's own script must not restart by itself.
    """
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    comment = _ask_squeue("%k")  # none where Slurm does not answer: then it will not put anything back either
    if comment and not comment.startswith("rule_"):
        raise UserError(f"{run}: stopped before the time limit of this job; running again continues")
    log.info("%s: stopped before its time limit, to go on from the queue", run)
    command = ["scontrol", "requeue", os.environ["SLURM_JOB_ID"]]
    try:
        asked = subprocess.run(command, capture_output=True, text=True, timeout=ANSWER_S)
        refused = asked.stderr.strip() if asked.returncode else None
    except (OSError, subprocess.TimeoutExpired) as error:
        refused = str(error)
    if refused is not None:
        log.info("%s: not put back (%s), so waiting for the time limit", run, refused)
        time.sleep(left_s)
    time.sleep(ANSWER_S)


def _ask_squeue(field: str) -> str:
    """Return a field of this job from squeue, times in seconds, or an empty string if it is unavailable."""
    if not _in_slurm():
        return ""
    command = ["squeue", "--noheader", "--jobs", os.environ["SLURM_JOB_ID"], "--format", field]
    try:
        asked = subprocess.run(
            command, capture_output=True, text=True, timeout=ANSWER_S, env=os.environ | {"SLURM_TIME_FORMAT": "%s"}
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return asked.stdout.strip()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m sid_core.cluster.launch", description=__doc__.splitlines()[0])
    parser.add_argument("--gpus", type=int, default=0, help="of all nodes together; a process trains on each")
    parser.add_argument("--nodes", type=int, default=1, help="of the Slurm job")
    parser.add_argument("--threads", type=int, default=1, help="CPUs of a node's processes together")
    parser.add_argument("--state", type=Path, required=True, help="folder of the training state")
    parser.add_argument("--attempt", type=int, default=1, help="Snakemake's; above 1 it is a retry")
    parser.add_argument("--continuations", type=int, default=100, help="at most, in a row")
    parser.add_argument("--save-s", type=float, default=180, help="seconds of the time limit kept for saving")
    parser.add_argument("stage", nargs="+", help="-- and the arguments of sid_core")
    return parser


if __name__ == "__main__":
    sys.exit(main())

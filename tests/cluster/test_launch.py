"""Test the job around a training; shell scripts replace the training and Slurm's commands."""

import json
import logging
import multiprocessing
import os
import signal
import sys
import time
from types import SimpleNamespace

import pytest

from sid_core.cluster import launch
from sid_core.cluster.machine import SUBMITTER_CALL
from sid_core.errors import UserError

# saves when it is asked to, at one image more each time, and ends as a training does
TRAINING = """
trap 'n=$(ls "$0" | grep -c state-); mkdir "$0/state-00000000$n"
echo "{\\"record\\": {\\"nimg\\": $((1234 + n)), \\"files\\": [\\"ema.safetensors\\"]}}" > "$0/state-00000000$n/ema.json"; exit 138' USR1
echo started
touch "$0.started"
while :; do sleep 0.02; done
"""
NO_PROGRESS = "trap 'exit 138' USR1; while :; do sleep 0.02; done"
SQUEUE = '#!/bin/sh\n[ "$LATE" ] && mv "$LATE" "$LATE.over" 2> /dev/null && exit 1\ncase "$5" in %e) echo "$END";; %k) echo "$COMMENT";; esac\n'
SCONTROL = '#!/bin/sh\n[ -z "$HANGS" ] || exec sleep $HANGS\n[ -z "$REFUSAL" ] || { echo "$REFUSAL" >&2; exit 1; }\necho "$@" >> "$CALLS"\nkill -TERM $PPID\n'


@pytest.fixture
def state(tmp_path):
    (tmp_path / "state" / "lsg-2").mkdir(parents=True)
    return tmp_path / "state" / "lsg-2"


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """Simulate Slurm job 7 of `rule_distill` with an hour left. `calls` records the calls of scontrol."""
    for name, script in {"squeue": SQUEUE, "scontrol": SCONTROL}.items():
        (tmp_path / "bin" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "bin" / name).write_text(script)
        (tmp_path / "bin" / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    job = SimpleNamespace(calls=tmp_path / "calls.txt", set=monkeypatch.setenv)
    job.set("CALLS", str(job.calls))
    job.set("COMMENT", "rule_distill_wildcards_lsg-2")
    job.set(SUBMITTER_CALL, "1234")
    job.set("SLURM_JOB_ID", "7")
    job.set("END", str(int(time.time()) + 3600))
    return job


@pytest.fixture
def start(state, monkeypatch, capfd):
    """Return start(script, options…) -> process of a launch; `start.ended()` -> its exit code and output."""
    fork = multiprocessing.get_context("fork")

    def begin(script=TRAINING, *options):
        monkeypatch.setattr(launch, "make_command", lambda *_: ["sh", "-c", script, str(state)])
        arguments = ["--state", str(state), *options, "--", "distill"]

        def run():
            logging.root.handlers.clear()  # pytest's
            sys.exit(launch.main(arguments))

        begin.process = fork.Process(target=run)
        begin.process.start()
        return begin.process

    def ended():
        begin.process.join(30)
        assert begin.process.exitcode is not None, "stuck"
        return begin.process.exitcode, capfd.readouterr().err

    begin.ended = ended
    yield begin
    begin.process.kill()


def row(state):
    return [start["from_nimg"] for start in json.loads((state / "starts.json").read_text())]


def test_main_at_the_time_limit_requeues_up_to_the_maximum(state, slurm, start):
    for count in range(3):
        slurm.set("END", str(int(time.time()) + 3))
        start(TRAINING, "--save-s", "1", "--continuations", "2")
        code, said = start.ended()
        assert code == -signal.SIGTERM  # as Slurm ends what it has put back
        assert "lsg-2: stopped before its time limit, requeued to continue" in said
        expected = f"lsg-2: continuation {count} of at most 2, from {1233 + count:,} nimg"
        assert (expected in said) == (count > 0)
    assert slurm.calls.read_text() == "requeue 7\n" * 3
    assert row(state) == [0, 1234, 1235]
    start(TRAINING, "--continuations", "2")
    code, said = start.ended()
    assert code == 1
    assert "lsg-2: continued 2 times and not done, at 1,236 nimg; expected at most" in said


@pytest.mark.parametrize(
    ("call", "attempt", "length"), [("1234", 1, 2), ("9", 1, 1), ("9", 2, 2), (None, 2, 2), (None, 1, 1)]
)
def test_attempt_history_of_another_call_begins_anew(state, slurm, start, monkeypatch, call, attempt, length):
    start("exit 1")
    assert start.ended()[0] == 1
    monkeypatch.delenv(SUBMITTER_CALL) if call is None else slurm.set(SUBMITTER_CALL, call)
    start("exit 1", "--attempt", str(attempt))
    assert start.ended()[0] == 1
    assert len(row(state)) == length


def test_attempt_history_after_the_training_is_cleared(state, start):
    start("exit 0")
    assert start.ended() == (0, "")
    assert not (state / "starts.json").exists()


def test_main_without_progress_raises(slurm, start):
    start(NO_PROGRESS, "--save-s", "4000")
    code, said = start.ended()
    assert code == 1
    assert "its time was up before half an iteration was done. Fix: raise resources.distill.runtime" in said
    assert not slurm.calls.exists()


def test_main_in_an_interactive_job_does_not_requeue(slurm, start):
    slurm.set("COMMENT", "(null)")
    slurm.set("END", str(int(time.time()) + 3))
    start(TRAINING, "--save-s", "1")
    code, said = start.ended()
    assert code == 1
    assert "lsg-2: stopped before the time limit of this job; running again continues" in said
    assert not slurm.calls.exists()


def test_requeue_where_forbidden_waits_for_the_time_limit(slurm, start):
    slurm.set("REFUSAL", "Requested operation is presently disabled")
    slurm.set("END", str(int(time.time()) + 3))
    process = start(TRAINING, "--save-s", "1")
    time.sleep(3)
    os.kill(process.pid, signal.SIGTERM)
    code, said = start.ended()
    assert code == -signal.SIGTERM
    assert "lsg-2: not requeued (Requested operation is presently disabled), waiting for the time limit" in said


def test_requeue_with_a_slow_controller_waits_for_the_time_limit(slurm, start, monkeypatch):
    monkeypatch.setattr(launch, "ANSWER_S", 0.5)
    slurm.set("HANGS", "5")
    slurm.set("END", str(int(time.time()) + 7))
    process = start(TRAINING, "--save-s", "5")
    time.sleep(4)
    os.kill(process.pid, signal.SIGTERM)
    code, said = start.ended()
    assert code == -signal.SIGTERM
    assert "timed out after 0.5 seconds), waiting for the time limit" in said


def test_wait_without_an_answer_polls_the_time_limit_again(tmp_path, slurm, start, monkeypatch):
    monkeypatch.setattr(launch, "POLL_S", 0.2)
    (tmp_path / "late").touch()
    slurm.set("LATE", str(tmp_path / "late"))
    slurm.set("END", str(int(time.time()) + 1))
    start()
    assert "lsg-2: stopped before its time limit, requeued to continue" in start.ended()[1]


def test_newest_with_a_damaged_checkpoint_returns_the_one_before(state, slurm, start):
    for number, text in enumerate(['{"record": {"nimg": 5, "files": ["ema.safetensors"]}}', "{"]):
        (state / f"state-{number:09d}").mkdir()
        (state / f"state-{number:09d}" / "ema.json").write_text(text)
    start("exit 0")
    assert start.ended() == (0, "")
    assert launch._newest(state) == (state / "state-000000000", 5)


@pytest.mark.parametrize("limit", ["N/A", ""])
def test_wait_without_a_time_limit_stops_nothing(slurm, start, limit):
    slurm.set("END", limit)
    start("sleep 0.5; exit 0", "--save-s", "4000")
    assert start.ended() == (0, "")


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP])
def test_wait_with_any_signal_saves_a_checkpoint(state, slurm, start, signum):
    process = start()
    while not state.with_suffix(".started").exists():
        time.sleep(0.02)
    for _ in range(2):  # a cluster signals more than once
        os.kill(process.pid, signum)
    assert start.ended()[0] == 128 + signum
    assert len(list(state.glob("state-*/ema.json"))) == 1
    assert not slurm.calls.exists()


def test_wait_for_a_killed_training_prints_the_signal(start):
    start("kill -KILL $$")
    assert start.ended() == (128 + signal.SIGKILL, "error: the training was ended by SIGKILL\n")


def test_main_after_an_alarm_rejects_a_retry(state, start):
    (state / "ended.json").write_text(json.dumps({"how": "aborted", "iteration": 3, "why": "lsg-2: latent_std=9"}))
    start("touch $0/started; exit 1", "--attempt", "2")
    assert start.ended() == (1, "error: lsg-2: latent_std=9 (a retry would end as the first one did)\n")
    assert not (state / "started").exists()
    start("touch $0/started; exit 1")
    start.ended()
    assert (state / "started").exists()


# --- commands ----------------------------------------------------------------------------------------------------------------


def test_make_command_of_one_process_uses_no_torchrun():
    for gpu_count in (0, 1):
        assert launch.make_command(["distill"], gpu_count, 1, 4) == [sys.executable, "-m", "sid_core", "distill"]


def test_make_command_of_several_gpus_uses_torchrun():
    command = launch.make_command(["distill", "--threads", "4"], 8, 1, 4)
    assert command[1:] == [
        *["-m", "sid_core.cluster.torchrun", "--nproc-per-node=8", "--standalone"],
        *["-m", "sid_core", "distill", "--threads", "4"],
    ]


@pytest.mark.parametrize(("gpu_count", "per_node"), [(0, 1), (2, 1), (16, 8)])
def test_make_command_of_several_nodes_uses_srun_and_torchrun(slurm, gpu_count, per_node):
    command = launch.make_command(["distill"], gpu_count, 2, 4)
    srun, torchrun = command[: command.index(sys.executable)], command[command.index(sys.executable) :]
    assert srun == ["srun", "--nodes=2", "--ntasks=2", "--cpus-per-task=4", "--kill-on-bad-exit=1"]
    assert torchrun[1:5] == ["-m", "sid_core.cluster.torchrun", f"--nproc-per-node={per_node}", "--nnodes=2"]
    assert torchrun[-4:] == ["--rdzv-id=7", "-m", "sid_core", "distill"]


def test_make_command_of_impossible_resources_raises(slurm, monkeypatch):
    with pytest.raises(UserError, match=r"resources\.distill\.gpu=3: expected a multiple of nodes=2"):
        launch.make_command(["distill"], 3, 2, 1)
    monkeypatch.delenv("SLURM_JOB_ID")
    with pytest.raises(UserError, match="only a Slurm job has several"):
        launch.make_command(["distill"], 2, 2, 1)

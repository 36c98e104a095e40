"""Test the torchrun wrapper with shell scripts as ranks."""

import signal
import subprocess
import sys
import time

import pytest

TORCHRUN = [
    sys.executable,
    "-m",
    "sid_core.cluster.torchrun",
    "--standalone",
    "--nproc-per-node=2",
    "--no-python",
    "sh",
]


@pytest.fixture
def start(tmp_path):
    """Return start(script), which runs it on two ranks."""

    def begin(script: str) -> subprocess.Popen:
        path = tmp_path / "script.sh"  # torchrun would replace $$ in an argument
        path.write_text(script)
        return subprocess.Popen([*TORCHRUN, str(path)], stderr=subprocess.PIPE, text=True)

    return begin


@pytest.mark.parametrize(
    ("script", "code", "said"),
    [
        ("[ $RANK = 0 ] || kill -KILL $$; sleep 60", 128 + 9, "error: process 1 was ended by SIGKILL\n"),
        ("[ $RANK = 0 ] && echo 'error: mine' >&2 && exit 11; sleep 60", 11, "error: mine\n"),
    ],
)
def test_torchrun_with_a_dead_rank_ends_all_and_prints_one_cause(start, script, code, said):
    process = start(script)
    assert process.communicate()[1] == said
    assert process.returncode == code


def test_torchrun_with_repeated_signals_forwards_the_first(start, tmp_path):
    save = f"sleep 1; touch {tmp_path}/saved-$RANK; exit 138"
    process = start(f"trap '{save}' USR1; touch {tmp_path}/begun-$RANK; while :; do sleep 0.05; done")
    while len(list(tmp_path.glob("begun-*"))) < 2:
        time.sleep(0.05)
    for signum in (signal.SIGTERM, signal.SIGUSR1, signal.SIGTERM):
        process.send_signal(signum)
        time.sleep(0.1)
    assert process.wait() == 128 + signal.SIGUSR1
    assert len(list(tmp_path.glob("saved-*"))) == 2
    assert set(process.stderr.read().splitlines()) <= {"User defined signal 1"}  # sh, about the sleep it waited for

"""Run `sid-core distill` under torchrun on two ranks: the cause of the end is printed once."""

import os
import subprocess
import sys

import pytest
from small_run import make_settings

from sid_core.config import Prompts, PromptsSettings, dump
from sid_core.data.prompts import prepare_prompts
from sid_core.storage.files import read_json
from sid_core.storage.states import saved_states

TORCHRUN = [sys.executable, "-m", "sid_core.cluster.torchrun", "--standalone", "--nproc-per-node=2"]
# MLflow's last sync takes seconds, and a signal reaches one process alone, or torchrun, where the test asks for it
STAGE = """
import os, signal, sys, time
from sid_core import cli, tracking
from sid_core.training.iteration import Trainer

goodbye, step = tracking.Mirror.__exit__, Trainer.step

def late(self, *error):
    time.sleep(3)
    goodbye(self, *error)

def signalled(self):
    if os.environ["RANK"] == "1" and self.iteration == 3 and os.environ["SIGNALLED"]:
        os.kill({"one": os.getpid(), "torchrun": os.getppid()}[os.environ["SIGNALLED"]], signal.SIGUSR1)
        time.sleep(0.5)
    return step(self)

tracking.Mirror.__exit__, Trainer.step = late, signalled
sys.exit(cli.main())
"""


@pytest.fixture
def distill(tiny_teacher, tmp_path):
    """Return distill(settings, target of the signal: one or torchrun), which returns the ended process."""
    (tmp_path / "stage.py").write_text(STAGE)
    prepare_prompts(PromptsSettings(prompts=Prompts(train=5, evaluation=1)), tmp_path / "prompts", tiny_teacher)

    def start(settings, signalled=""):
        (tmp_path / "settings.yaml").write_text(dump(settings))
        places = {name: tmp_path / name for name in ("state", "out", "tracking")}
        places |= {"settings": tmp_path / "settings.yaml", "prompts": tmp_path / "prompts" / "train.txt"}
        options = [text for name, path in places.items() for text in (f"--{name}", str(path))]
        command = [*TORCHRUN, str(tmp_path / "stage.py"), "distill", *options, "--teacher", str(tiny_teacher)]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "SIGNALLED": signalled}
        return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=240)

    return start


def test_torchrun_with_an_alarm_prints_it_once_and_ends_all(distill, tmp_path):
    ended = distill(make_settings(micro_batch=2, alarms={"score_gap_max": 1e-9}))
    assert ended.returncode == 1
    assert ended.stderr.count("error: lsg-1.5: score_gap=") == ended.stderr.count("error: ") == 1, ended.stderr
    assert read_json(tmp_path / "state" / "ended.json")["how"] == "aborted"
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("signalled", ["one", "torchrun"])
def test_torchrun_with_a_signal_prints_it_once_and_ends_all(distill, tmp_path, signalled):
    ended = distill(make_settings(micro_batch=2), signalled)
    assert ended.returncode == 128 + 10
    assert ended.stderr.count("lsg-1.5: interrupted; its state is saved") == ended.stderr.count("error: ") == 1
    assert "000000004" in saved_states(tmp_path / "state")[0].name

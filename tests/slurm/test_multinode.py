"""Test a training on two nodes: the bits of two ranks on one machine, and one message if a rank dies."""

import os
import re
import signal
import time

import pytest
import torch
from cluster import Cluster
from training import Training

from sid_core.storage.states import saved_states

pytestmark = pytest.mark.system

TWO = ("--gpus=2", "--nodes=2")
# as the plugin submits what several_nodes in workflow/rules/distill.smk asks for
SBATCH = ("--nodes=2", "--ntasks=2", "--gpus=2")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    with Cluster(tmp_path_factory.mktemp("slurm") / "cluster") as running:
        yield running


def processes(text: str) -> list[int]:
    """Return the processes of this machine, including the cluster's, by their command line."""
    found = []
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            try:
                with open(f"{entry.path}/cmdline") as file:
                    command = file.read().replace("\0", " ")
            except OSError:
                continue
            if re.search(text, command):
                found.append(int(entry.name))
    return found


def test_training_on_two_nodes_equals_two_local_ranks(cluster, tiny_teacher, tmp_path):
    there, here = (Training(tmp_path / name, tiny_teacher) for name in ("there", "here"))
    there.submit(cluster, *TWO, sbatch=SBATCH, slowly=False)
    local = here.start("--gpus=2")
    assert there.wait_for_the_end() == "COMPLETED", there.said()
    assert there.shown()["NodeList"] == "node[0-1]"
    assert local.wait() == 0, here.said()
    assert there.points() == here.points()
    expected = here.weights()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in there.weights().items())


def test_training_on_two_nodes_with_a_dead_rank_ends_with_one_message(cluster, tiny_teacher, tmp_path):
    training = Training(tmp_path / "training", tiny_teacher)
    job = training.submit(cluster, *TWO, sbatch=SBATCH)
    training.wait_until(lambda: training.nimg() > 0)
    cluster.run(["scancel", job])
    assert training.wait_for_the_end() == "CANCELLED"
    newest = saved_states(training.state)[0]
    assert training.said().count("interrupted; its state is saved") == 1
    assert int(newest.name[6:15]) * 4 == training.nimg()  # the last iteration, not the last period

    reached = training.nimg()
    training.submit(cluster, *TWO, sbatch=SBATCH)
    training.wait_until(lambda: training.nimg() > reached)
    workers = processes(rf"^\S+ -u -m sid_core distill .*{re.escape(str(training.state))}")
    assert len(workers) == 2
    began = time.monotonic()
    os.kill(max(workers), signal.SIGKILL)
    assert training.wait_for_the_end() == "FAILED"
    assert time.monotonic() - began < 60
    assert len(re.findall(r"^error: process [01] was ended by SIG", training.said(), re.M)) == 1
    assert "Traceback" not in training.said()

"""Test that a training resumes after its job ends, and finishes with the bits of an uninterrupted one."""

import time

import pytest
import torch
from cluster import Cluster
from training import Training

pytestmark = pytest.mark.system

SAVE_S = 40


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    folder = tmp_path_factory.mktemp("slurm") / "cluster"
    # what was put back into the queue may start after 5 s instead of 120
    with Cluster(folder, conf=f"AuthInfo=socket={folder}/munge/socket,cred_expire=5") as running:
        yield running


def test_training_after_any_end_of_its_job_resumes(cluster, tiny_teacher, tmp_path):
    whole, training = (Training(tmp_path / name, tiny_teacher) for name in ("whole", "training"))

    def end_in(seconds: float) -> None:
        end = time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(time.time() + seconds))
        cluster.run(["scontrol", "update", f"JobId={training.job}", f"EndTime={end}"], uid=0)

    def trains(start: int) -> bool:
        """Return whether the training has made progress since its `start`-th start."""
        row = training.starts()
        return len(row) == start and training.nimg() > row[-1]["from_nimg"]

    # a minute from the beginning: a job looks again only when the limit it knows is near
    first = training.submit(cluster, f"--save-s={SAVE_S}", "--continuations=3", sbatch=("--time=1",))
    alone = whole.start()

    # its time limit: the job stops before it, and puts itself back. Its end is put off until it has trained
    training.wait_until(lambda: training.shown()["JobState"] == "RUNNING")
    training.wait_until(lambda: trains(1), meanwhile=lambda: end_in(SAVE_S + 6))
    training.wait_until(lambda: training.shown()["Restarts"] == "1")
    cluster.run(["scontrol", "update", f"JobId={first}", "TimeLimit=60"], uid=0)  # its end was its limit's, too
    assert "stopped before its time limit, requeued to continue" in training.said()

    # the operator puts it back
    training.wait_until(lambda: trains(2))
    cluster.run(["scontrol", "requeue", first])

    # the time limit itself; Snakemake would submit another job
    training.wait_until(lambda: trains(3))
    end_in(1)
    assert training.wait_for_the_end() == "TIMEOUT"
    second = training.submit(cluster, f"--save-s={SAVE_S}", "--continuations=3", slowly=False)
    assert training.wait_for_the_end() == "COMPLETED", training.said()
    assert second != first

    for count in (1, 2, 3):
        assert f"{training.state.name}: continuation {count} of at most 3, from " in training.said()
    assert alone.wait() == 0, whole.said()
    assert training.points() == whole.points()
    expected = whole.weights()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in training.weights().items())

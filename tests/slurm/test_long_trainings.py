"""Test through Snakemake, which takes minutes: a training over several time limits in one call, and one on two nodes."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from urllib.request import urlopen

import pytest
from cluster import Cluster
from mlflow import MlflowClient
from pipeline import Pipeline, Project, install_plugin, read_scores
from training import SLOWLY

pytestmark = [pytest.mark.slow, pytest.mark.system]
BLOCKS = {
    "baselines": {"steps": []},
    "distill": {"train_kimg": 0.56},  # 70 points of the log, a second each
    "tracking": {"enabled": False},
}
DISTILL = {"gpu": 0, "threads": 1, "mem_mb": 2000, "runtime": "1m", "continuations": 9, "save_s": 30}
STATE = "results/smallest/state/lsg-1.5"


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Return run(distill, options…) -> the finished pipeline, whose trainings take a second per log entry."""
    monkeypatch.setenv("PYTHONPATH", str(SLOWLY))
    with Cluster(tmp_path / "cluster") as cluster:

        def begin(distill: dict, *options: str) -> Pipeline:
            blocks = BLOCKS | {"resources": {"distill": distill}}
            pipeline = Pipeline(tmp_path / "pipeline", cluster, install_plugin(tmp_path / "plugin"), **blocks)
            pipeline.start(*options)
            pipeline.finish(patience_s=1800)
            return pipeline

        yield begin


@pytest.fixture
def local(tmp_path):
    """Return local(distill) -> scores without Slurm and limits."""

    def begin(distill: dict) -> dict:
        (tmp_path / "local").mkdir()
        project = Project(tmp_path / "local")
        project.configure(**BLOCKS, resources={"distill": distill})
        subprocess.run(
            [sys.executable, "-m", "snakemake", "--cores", "2", "--resources", "gpu=2", "--quiet", "all"],
            cwd=project.folder,
            check=True,
        )
        return read_scores(project.results)

    return begin


@pytest.mark.parametrize("put_back", [True, False])
def test_training_over_three_time_limits_needs_one_call(run, local, put_back):
    """Check one requeued job, and, without requeue, several jobs that each end by TIMEOUT."""
    pipeline = run(DISTILL, *([] if put_back else ["--set-resources", "distill:slurm_extra='--no-requeue'"]))
    jobs = pipeline.jobs("distill")
    if put_back:
        assert [job["JobState"] for job in jobs] == ["COMPLETED"]
        assert int(jobs[0]["Restarts"]) >= 3
    else:
        assert len(jobs) >= 4
        assert [job["JobState"] for job in jobs] == ["TIMEOUT"] * (len(jobs) - 1) + ["COMPLETED"]
    points = [
        json.loads(line)["nimg"] for line in (pipeline.folder / STATE / "training.jsonl").read_text().splitlines()
    ]
    assert points == list(range(8, 561, 8))
    assert pipeline.scores() == local(DISTILL)


def test_training_of_two_nodes_finishes(run, local):
    nodes = DISTILL | {"gpu": 2, "nodes": 2, "runtime": "1h"}
    pipeline = run(nodes)
    job = pipeline.jobs("distill")[-1]
    assert job["NumNodes"] == "2"
    assert job["NodeList"] == "node[0-1]"
    assert job["TresPerJob"] == "gres:gpu:2"
    assert pipeline.scores() == local(nodes | {"nodes": 1})


def test_training_after_a_node_failure_without_requeue_resumes(tmp_path, monkeypatch, local):
    """Check NODE_FAIL, a final state in which the plugin waits for a requeue."""
    monkeypatch.setenv("PYTHONPATH", str(SLOWLY))
    with Cluster(tmp_path / "cluster") as cluster:
        blocks = BLOCKS | {"resources": {"distill": DISTILL | {"runtime": "1h"}}}
        pipeline = Pipeline(tmp_path / "pipeline", cluster, install_plugin(tmp_path / "plugin"), **blocks)
        pipeline.start("--set-resources", "distill:slurm_extra='--no-requeue'")
        first = pipeline.wait_for("distill")
        log = pipeline.folder / STATE / "training.jsonl"
        while not log.is_file() or len(log.read_text().splitlines()) < 10:
            time.sleep(0.5)
        cluster.crash(first["NodeList"])
        second = pipeline.wait_for("distill", until=lambda job: job["JobId"] != first["JobId"])
        cluster.start(first["NodeList"])
        pipeline.finish()
        [failed] = pipeline.jobs("distill", "NODE_FAIL")
    assert failed["JobId"] == first["JobId"]
    assert second["MinMemoryNode"] == first["MinMemoryNode"]  # as much more as a retry asks for: it is none
    assert pipeline.scores() == local(DISTILL)


@pytest.fixture
def server(tmp_path):
    """Start an MLflow server as a group would for its cluster; yield its address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    store = [f"--backend-store-uri=sqlite:///{tmp_path}/server.db", f"--artifacts-destination={tmp_path}/artifacts"]
    host, port = address.split(":")
    command = [sys.executable, "-m", "mlflow", "server", "--host", host, "--port", port, "--workers", "1", *store]
    with open(tmp_path / "server.log", "w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
    while process.poll() is None:
        with contextlib.suppress(OSError), urlopen(f"http://{address}/health"):
            break
        time.sleep(0.2)
    yield f"http://{address}"
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def test_training_on_nodes_is_mirrored_to_a_server(tmp_path, monkeypatch, server):
    monkeypatch.setenv("PYTHONPATH", str(SLOWLY))
    client = MlflowClient(tracking_uri=server)

    def points() -> int:
        """Return the run's log entries on the server."""
        runs = client.search_runs([one.experiment_id for one in client.search_experiments()])
        return sum(len(client.get_metric_history(run.info.run_id, "training/fake_loss")) for run in runs)

    with Cluster(tmp_path / "cluster") as cluster:
        blocks = BLOCKS | {"tracking": {"uri": server}, "resources": {"distill": DISTILL | {"runtime": "1h"}}}
        pipeline = Pipeline(tmp_path / "pipeline", cluster, install_plugin(tmp_path / "plugin"), **blocks)
        pipeline.start()
        pipeline.wait_for("distill")
        while not 0 < points() < 70:  # while it trains
            assert pipeline.jobs("distill", "RUNNING"), pipeline.said()
            time.sleep(1)
        pipeline.finish()
    assert points() == 70

"""Test that scores on a real Slurm equal local ones, bit for bit, under any failure.

One pipeline runs the whole graph: each of the first tests injects a fault at another stage and continues the last test's state.
Its finished results are then copied for faults of single stages. Jobs are few: each starts Snakemake twice.
"""

import json
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from cluster import Cluster
from pipeline import Pipeline, Project, install_plugin, read_scores

pytestmark = pytest.mark.system

NOBODY = 65534
BLOCKS = {
    "baselines": {"steps": []},
    "generate": {"samples": 32, "samples_per_shard": 16, "batch": 16},
    "tracking": {"enabled": False},
    "resources": {
        "distill": {"gpu": 1, "threads": 1, "mem_mb": 9000, "runtime": "2h"},
        "prompts": {
            "gpu": 0,
            "threads": 2,
            "mem_mb": 2000,
            "runtime": "30m",
        },  # of all stages, threads change no number here
    },
}
RUN = Path("results/smallest/runs/lsg-1.5")


@pytest.fixture(scope="module")
def place():
    """Make a folder that other users may enter; pytest's is closed."""
    with tempfile.TemporaryDirectory(prefix="slurm-") as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


@pytest.fixture(scope="module")
def plugin(place):
    return install_plugin(place / "plugin")


@pytest.fixture(scope="module")
def cluster(place):
    with Cluster(place / "cluster") as running:
        yield running


@pytest.fixture(scope="module")
def local(place):
    """Start the same experiment without Slurm, concurrently with the first tests to save time."""
    (place / "local").mkdir()
    project = Project(place / "local")
    project.configure(**BLOCKS)
    with open(place / "local.log", "w") as log:
        command = [sys.executable, "-m", "snakemake", "--cores", "2"]
        project.process = subprocess.Popen(command, cwd=project.folder, stdout=log, stderr=subprocess.STDOUT)
    yield project
    project.process.kill()


@pytest.fixture(scope="module")
def whole(place, cluster, plugin, local):
    """Start a pipeline."""
    pipeline = Pipeline(place / "whole", cluster, plugin, **BLOCKS)
    pipeline.start()
    return pipeline


# --- one pipeline, a fault at each stage -----------------------------------------------------------------------------------


def test_slurm_job_after_scancel_is_retried(whole, cluster):
    first = whole.wait_for("reference")
    cluster.run(["scancel", first["JobId"]])
    again = whole.wait_for("reference", until=lambda job: job["JobId"] != first["JobId"])
    assert again["TRES"].startswith("cpu=1,mem=10000M")  # twice as much as the first time
    assert again["JobName"].startswith("smallest_")
    assert again["Comment"].startswith("rule_reference_evaluation_networks_reference")


def test_slurm_job_gets_the_configured_resources(whole):
    job = whole.wait_for("distill")
    assert whole.jobs("prepare")[-1]["NumCPUs"] == "2"
    assert (job["NumCPUs"], job["MinMemoryNode"], job["TimeLimit"]) == ("1", "9000M", "02:00:00")
    assert job["TresPerJob"] == "gres:gpu:1"
    assert job["Comment"] == "rule_distill_wildcards_lsg-1.5"
    assert job["StdOut"].startswith(f"{whole.folder}/logs/slurm/rule_distill/lsg-1.5/")


def test_slurm_job_after_requeue_runs_again(whole, cluster):
    job = whole.wait_for("distill")
    cluster.run(["scontrol", "requeue", job["JobId"]])
    again = whole.wait_for("distill", until=lambda job: job["Restarts"] == "1")
    assert again["JobId"] == job["JobId"]


def test_slurm_jobs_of_a_killed_snakemake_run_once(whole, cluster):
    running = whole.wait_for("distill")
    whole.kill()
    cluster.run(["scontrol", "suspend", running["JobId"]])  # lest it ends before Snakemake is back
    whole.unlock()
    whole.start()
    waiting = whole.wait_for("distill", "PENDING")
    assert waiting["Dependency"].startswith(f"afterany:{running['JobId']}")
    assert whole.jobs("distill")[0]["JobState"] == "SUSPENDED"
    cluster.run(["scontrol", "resume", running["JobId"]])
    shard = whole.wait_for("shard")
    first, second = whole.jobs("distill")
    assert (first["JobState"], second["JobState"]) == ("COMPLETED", "COMPLETED")
    assert first["EndTime"] <= second["StartTime"] < shard["StartTime"]
    points = [json.loads(line)["nimg"] for line in (whole.folder / RUN / "training.jsonl").read_text().splitlines()]
    assert points == sorted(set(points))  # what the first has trained, the second did not train again


def test_slurm_node_failure_loses_one_shard(whole, cluster):
    job = whole.wait_for("shard")
    node = job["NodeList"]
    cluster.crash(node)
    whole.wait_for("shard", until=lambda other: other["JobId"] == job["JobId"] and other["Restarts"] == "1")
    cluster.start(node)
    whole.wait_for("score")
    shards = whole.jobs("shard", "COMPLETED")
    assert sorted(shard["Comment"][-13:] for shard in shards) == ["lsg-1.5_00000", "lsg-1.5_00001"]


def test_slurm_pipeline_again_has_nothing_to_do(whole, cluster):
    """Requeue a finished job, as a controller that crashed and forgot its last minute."""
    shard = whole.jobs("shard", "COMPLETED")[0]
    cluster.run(["scontrol", "requeue", shard["JobId"]])
    whole.wait_for("shard", "CANCELLED", until=lambda job: job["JobId"] == shard["JobId"])


def test_slurm_pipeline_without_a_controller_waits(whole, cluster):
    whole.wait_for("score")
    cluster.stop("slurmctld", "TERM")
    time.sleep(30)
    cluster.start("slurmctld")
    whole.finish()


def test_slurm_scores_equal_those_of_a_local_run(whole, local):
    assert local.process.wait() == 0
    scores = whole.scores()
    assert set(scores) == {"runs/lsg-1.5"}
    assert scores == read_scores(local.results)


# --- faults of single stages, on copies of what is finished ---------------------------------------------------------------------


@pytest.fixture
def copy(whole, place, cluster, plugin):
    """Return a function that makes a pipeline from the finished one's results, without `remove`."""

    def make(name: str, remove: list[str], uid: int = 0, **blocks) -> Pipeline:
        pipeline = Pipeline(place / name, cluster, plugin, uid, **(BLOCKS | blocks))
        for part in ("results", ".snakemake"):
            shutil.copytree(whole.folder / part, pipeline.folder / part)
        for path in remove:
            (pipeline.folder / path).unlink()
        return pipeline

    return make


def test_slurm_users_short_of_memory_or_disk_recover(copy, cluster, local):
    little = {"score": {"gpu": 0, "threads": 1, "mem_mb": 500, "runtime": "1h"}}
    mine = copy("memory", [RUN / "score.json"], resources=BLOCKS["resources"] | little)
    theirs = copy("disk", [RUN / "score.json"], uid=NOBODY)
    disk = ["mount", "-t", "tmpfs", "-o", f"size=4k,uid={NOBODY}", "none", str(theirs.results / "figures")]
    cluster.run(disk, uid=0)
    mine.start()
    theirs.start("--retries", "0")

    assert "no space left on device; make room or choose another place, then run again" in theirs.finish(returncode=1)
    cluster.run(["mount", "-o", "remount,size=10m", str(theirs.results / "figures")], uid=0)
    theirs.start()
    theirs.finish()
    mine.finish()

    expected = read_scores(local.results)
    assert mine.scores() == theirs.scores() == expected
    # Slurm samples the memory, so 1000M is enough only on some machines; without cgroups it calls the state FAILED
    *killed, last = [(job["JobState"], job["MinMemoryNode"]) for job in mine.jobs("score")]
    assert killed in ([("FAILED", "500M")], [("FAILED", "500M"), ("FAILED", "1000M")])
    assert last == ("COMPLETED", f"{500 * (len(killed) + 1)}M")
    assert {job["UserId"].split("(")[0] for job in theirs.jobs()} == {"nobody"}


def test_slurm_rejection_ends_the_call_and_ctrl_c_all_jobs(place, cluster, plugin):
    pipeline = Pipeline(place / "interrupted", cluster, plugin, **BLOCKS)
    pipeline.start("--retries", "0", "--default-resources", "slurm_extra='--job-name=mine'")
    assert "Job submission failed: The --job-name option is not allowed" in pipeline.finish(returncode=1)
    assert pipeline.jobs() == []

    own = ["--default-resources", "slurm_partition=main", "--set-resources", "reference:gpu=0", "reference:gres=gpu:1"]
    pipeline.start(*own)
    job = pipeline.wait_for("reference")
    assert (job["Partition"], job["TresPerNode"]) == ("main", "gres:gpu:1")
    pipeline.kill(signal.SIGINT)
    assert pipeline.jobs("reference")[-1]["JobState"] in ("CANCELLED", "COMPLETING"), pipeline.said()
    assert not pipeline.jobs(state="RUNNING") + pipeline.jobs(state="PENDING")  # another may have ended before


@pytest.mark.slow
def test_slurm_pipeline_with_sacct_finishes(whole, place, plugin, local):
    """Check a cluster with slurmdbd: sacct replaces squeue, and lists the resources of jobs."""
    with Cluster(place / "accounting", accounting=True) as cluster:
        pipeline = Pipeline(place / "counted", cluster, plugin, **BLOCKS)
        shutil.copytree(whole.results, pipeline.results)
        shutil.copytree(whole.folder / ".snakemake", pipeline.folder / ".snakemake")
        (pipeline.folder / RUN / "score.json").unlink()
        pipeline.start("--slurm-status-command", "sacct")
        first = pipeline.wait_for("score")
        cluster.run(
            ["scancel", first["JobId"]]
        )  # of which sacct says by whom, and the plugin no more than that it runs
        pipeline.finish()
        assert pipeline.scores() == read_scores(local.results)
        told = cluster.run(["sacct", "-X", "--noheader", "--parsable2", "--format=Comment,State,AllocTRES,Timelimit"])
    assert (
        "rule_score_wildcards_runs_lsg-1.5|CANCELLED by 0|billing=1,cpu=1,mem=5000M,node=1|01:00:00"
        in told.splitlines()
    )
    assert "rule_score_wildcards_runs_lsg-1.5|COMPLETED|billing=1,cpu=1,mem=10000M,node=1|02:00:00" in told.splitlines()


# --- the lease, on nodes with names of their own ------------------------------------------------------------------------------

HOLD = """
import sys, time
from sid_core.storage import heartbeat, lease
heartbeat.PERIOD_S = 0.5
with lease.lease(sys.argv[1]):
    print("holds", flush=True)
    time.sleep(float(sys.argv[2]))
"""


def test_checkpoint_folder_on_two_nodes_has_one_writer(cluster, place):
    def job(node: str, seconds: int) -> subprocess.Popen:
        command = [
            "srun",
            f"--nodelist={node}",
            "--mem=100",
            sys.executable,
            "-c",
            HOLD,
            str(place / "state"),
            str(seconds),
        ]
        return cluster.popen(command, cwd=place, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    first = job("node0", 1000)
    assert first.stdout.readline() == "holds\n"
    _, said = job("node1", 0).communicate()
    assert "in use by process" in said
    assert "on node0, Slurm job" in said
    cluster.crash("node0")
    output, said = job("node1", 0).communicate()  # at once: the dead owner's last heartbeat is fresh
    assert output == "holds\n", said
    first.kill()
    cluster.start("node0")

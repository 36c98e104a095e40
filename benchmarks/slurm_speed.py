"""Measure the overhead of Slurm in a cluster of its own on this machine (tests/helpers/cluster.py).

Two questions. How long is it from a job's end, as Slurm tells it, to the submission of what waited for it? And how long does a
sweep of four scales with eight shards each take, beside the same sweep without Slurm, both with two jobs at a time?
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import datetime
from itertools import pairwise
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "helpers"))
from cluster import Cluster
from pipeline import Pipeline, Project, install_plugin

CHAIN = ("prepare", "distill", "shard", "score", "report")  # each waits for the one before it
PATIENCE_S = 7200
JOBS = 2  # at a time: the machine has two cores


def sweep_of(scales: int, shards: int, train_kimg: float, samples: int) -> dict:
    return {
        "guidance_scales": [1.5, 2, 3, 4.5][:scales],
        "distill": {"train_kimg": train_kimg, "batch": 32, "micro_batch": 32, "state_every_nimg": 3200},
        "prompts": {"evaluation": samples},
        "generate": {"samples": samples, "samples_per_shard": samples // shards, "batch": 250},
        "baselines": {"steps": []},
        "tracking": {"enabled": False},
    }


def overhead_s(pipeline: Pipeline) -> list[float]:
    """Return seconds from the end of one job of the chain to the submission of the next; Slurm reports whole seconds."""
    jobs = [pipeline.jobs(rule)[-1] for rule in CHAIN]
    return [
        (datetime.fromisoformat(after["SubmitTime"]) - datetime.fromisoformat(before["EndTime"])).total_seconds()
        for before, after in pairwise(jobs)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scales", type=int, default=4)
    parser.add_argument("--shards", type=int, default=8)
    parser.add_argument("--train-kimg", type=float, default=19.2)
    parser.add_argument("--samples", type=int, default=5000)
    parser.add_argument("--only", choices=("overhead", "sweep"), help="one of the two questions")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="slurm-") as name, Cluster(Path(name) / "cluster") as cluster:
        place = Path(name)
        plugin = install_plugin(place / "plugin")
        if given.only != "sweep":
            one = Pipeline(place / "one", cluster, plugin, **sweep_of(1, 1, 0.064, 32))
            one.start()
            one.finish()
            gaps = overhead_s(one)
            print(f"from a job's end to the next submission: {statistics.mean(gaps):.1f} s (at most {max(gaps):.0f} s)")
        if given.only != "overhead":
            blocks = sweep_of(given.scales, given.shards, given.train_kimg, given.samples)
            (place / "local").mkdir()
            local = Project(place / "local")
            local.configure(**blocks)
            start = time.monotonic()
            subprocess.run(
                [sys.executable, "-m", "snakemake", "--cores", str(JOBS), "--quiet", "all"],
                cwd=local.folder,
                check=True,
            )
            local_s = time.monotonic() - start
            sweep = Pipeline(place / "sweep", cluster, plugin, **blocks)
            start = time.monotonic()
            sweep.start("--jobs", str(JOBS))
            sweep.finish(patience_s=PATIENCE_S)
            slurm_s = time.monotonic() - start
            print(f"sweep: {local_s:.0f} s without Slurm, {slurm_s:.0f} s with it, ratio {slurm_s / local_s:.2f}")


if __name__ == "__main__":
    main()

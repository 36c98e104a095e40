"""Random faults into a sweep on a Slurm of its own, again and again: `python tests/slurm/faults.py --sweeps 20 --faults 10`.

Two scales, two shards each. Each sweep must end with the scores of a local run, bit for bit. Faults come at random times, to
random jobs, from a seed (what they hit depends on the machine's speed too). Where Snakemake gives a job up after its retries,
the command is given again, as a user would, and counted.
"""

import argparse
import contextlib
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from cluster import Cluster
from pipeline import Pipeline, Project, install_plugin, read_scores

BLOCKS = {
    "guidance_scales": [1.5, 2],
    "baselines": {"steps": []},
    "generate": {"samples": 32, "samples_per_shard": 16, "batch": 16, "eps_error_samples": 16},
    "tracking": {"enabled": False},
}
AGAIN = 10  # times that the command is given again in a sweep, at most
DISK_MB = 200


def cancel(sweep: Pipeline, rng: random.Random) -> str:
    return on_a_job(sweep, rng, "scancel")


def requeue(sweep: Pipeline, rng: random.Random) -> str:
    return on_a_job(sweep, rng, "scontrol", "requeue")


def time_out(sweep: Pipeline, rng: random.Random) -> str:
    """The limit is now the shortest there is, a minute: jobs that run longer are ended."""
    return on_a_job(sweep, rng, "scontrol", "update", "TimeLimit=1", "job")


def run_out_of_memory(sweep: Pipeline, rng: random.Random) -> str:
    """What the kernel does then: the largest process of a job is killed."""
    job = rng.choice(sweep.jobs(state="RUNNING"))
    script = (
        f"for p in $(scontrol listpids {job['JobId']} {job['NodeList']} | awk 'NR > 1 {{print $1}}'); do "
        "echo $(awk '/VmRSS/ {print $2}' /proc/$p/status) $p; done | sort -n | tail -1 | cut -d' ' -f2 | xargs kill -KILL"
    )
    sweep.cluster.run(["sh", "-c", script])
    return job["Comment"]


def kill_slurmd(sweep: Pipeline, rng: random.Random) -> str:
    node = rng.choice(sweep.cluster.nodes)
    sweep.cluster.stop(node)
    time.sleep(rng.uniform(1, 25))  # after 10 s the controller takes the node for failed
    sweep.cluster.start(node)
    return node


def crash_a_node(sweep: Pipeline, rng: random.Random) -> str:
    node = rng.choice(sweep.cluster.nodes)
    sweep.cluster.crash(node)
    time.sleep(rng.uniform(1, 25))
    sweep.cluster.start(node)
    return node


def stop_the_controller(sweep: Pipeline, rng: random.Random) -> str:
    sweep.cluster.stop("slurmctld")
    time.sleep(30)
    sweep.cluster.start("slurmctld")
    return "30 s"


def kill_snakemake(sweep: Pipeline, rng: random.Random) -> str:
    sweep.kill()
    time.sleep(rng.uniform(0, 20))
    sweep.unlock()
    sweep.start()
    return ""


def fill_the_disk(sweep: Pipeline, rng: random.Random) -> str:
    filler = str(sweep.results / "filler")
    with contextlib.suppress(RuntimeError):
        sweep.cluster.run(["dd", "if=/dev/zero", f"of={filler}", "bs=64k"])
    time.sleep(rng.uniform(5, 30))
    sweep.cluster.run(["rm", "-f", filler])
    return f"{DISK_MB} MB"


FAULTS: list[Callable[[Pipeline, random.Random], str]] = [
    cancel, requeue, time_out, run_out_of_memory, kill_slurmd, crash_a_node, stop_the_controller, kill_snakemake, fill_the_disk,
]  # fmt: skip


def on_a_job(sweep: Pipeline, rng: random.Random, *command: str) -> str:
    job = rng.choice(sweep.jobs(state="RUNNING"))
    sweep.cluster.run([*command, job["JobId"]])
    return job["Comment"]


def run_sweep(sweep: Pipeline, rng: random.Random, faults: int, pause_s: float) -> tuple[list[str], int]:
    """Run to the end, with faults on the way. Returns what was done to it, and how often the command was given again."""
    told, again = [], 0
    sweep.start()
    next_at = time.monotonic() + rng.uniform(0.3, 1.7) * pause_s
    while True:
        if sweep.process.poll() is not None:
            if sweep.process.returncode == 0:
                return told, again
            assert again < AGAIN, sweep.said()
            again += 1
            sweep.start()
        if len(told) < faults and time.monotonic() > next_at:
            fault = rng.choice(FAULTS)
            # no job runs, or it has ended meanwhile
            with contextlib.suppress(IndexError, RuntimeError, FileNotFoundError):
                told.append(f"{fault.__name__} {fault(sweep, rng)}")
                print(f"  {told[-1]}", flush=True)
            next_at = time.monotonic() + rng.uniform(0.3, 1.7) * pause_s
        time.sleep(0.5)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sweeps", type=int, default=20)
    parser.add_argument("--faults", type=int, default=10, help="in each sweep, as far as it lasts")
    parser.add_argument(
        "--pause", type=float, default=15, metavar="S", help="between faults, on average; more on a slow machine"
    )
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    wrong = 0
    with tempfile.TemporaryDirectory(prefix="slurm-") as name:
        place = Path(name)
        (place / "local").mkdir()
        local = Project(place / "local")
        local.configure(**BLOCKS)
        subprocess.run(
            [sys.executable, "-m", "snakemake", "--cores", "2", "--quiet", "all"], cwd=local.folder, check=True
        )
        expected, plugin = read_scores(local.results), install_plugin(place / "plugin")
        for number in range(given.seed, given.seed + given.sweeps):
            with Cluster(place / f"cluster-{number}") as cluster:
                sweep = Pipeline(place / f"sweep-{number}", cluster, plugin, **BLOCKS)
                sweep.results.mkdir(parents=True)
                cluster.run(["mount", "-t", "tmpfs", "-o", f"size={DISK_MB}m", "none", str(sweep.results)], uid=0)
                start = time.monotonic()
                told, again = run_sweep(sweep, random.Random(number), given.faults, given.pause)
                cluster.run(["sh", "-c", f"cp -r {sweep.results} {sweep.folder}/copy"])
                right = read_scores(sweep.folder / "copy") == expected
                wrong += not right
                took_s = time.monotonic() - start
                print(
                    f"sweep {number}: {len(told)} faults, command given again {again} times, {len(sweep.jobs())} jobs, {took_s:.0f} s, "
                    f"scores {'right' if right else 'WRONG'}",
                    flush=True,
                )
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())

"""Inject random faults into sweeps on a new Slurm: `python tests/slurm/faults.py --sweeps 20 --faults 10`.

Two scales, two shards each: eleven jobs. Each sweep must end with the scores of a local run, bit for bit. Faults come from a seed:
each once so many jobs are done, to random jobs among those that run (what they hit depends on the machine's speed too). Where Snakemake
gives a job up after its retries, the command is given again, as a user would, and counted. At the end: how long it was from each
fault until what it hit ran again, and which stages were hit.
"""

import argparse
import contextlib
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "helpers"))
from cluster import Cluster
from pipeline import Pipeline, Project, install_plugin, read_scores

BLOCKS = {
    "guidance_scales": [1.5, 2],
    "baselines": {"steps": []},
    "generate": {"samples": 32, "samples_per_shard": 16, "batch": 16},
    "tracking": {"enabled": False},
}
LAST = 10  # jobs done at most when a fault comes: the report, and what faults have undone, is left
AGAIN = 10  # times that the command is given again in a sweep, at most
FORGETS_S = 10  # a controller that is killed forgets what it was asked in the seconds before
DISK_MB = 200


Jobs = list[dict[str, str]]  # that a fault has ended


def cancel(sweep: Pipeline, rng: random.Random) -> Jobs:
    return on_a_job(sweep, rng, "scancel")


def requeue(sweep: Pipeline, rng: random.Random) -> Jobs:
    return on_a_job(sweep, rng, "scontrol", "requeue")


def time_out(sweep: Pipeline, rng: random.Random) -> Jobs:
    """Set the time limit to the shortest, a minute: Slurm ends longer jobs."""
    return on_a_job(sweep, rng, "scontrol", "update", "TimeLimit=1", "job")


def run_out_of_memory(sweep: Pipeline, rng: random.Random) -> Jobs:
    """Kill the largest process of a job, as the kernel does."""
    job = rng.choice(sweep.jobs(state="RUNNING"))
    script = (
        f"for p in $(scontrol listpids {job['JobId']} {job['NodeList']} | awk 'NR > 1 {{print $1}}'); do "
        "echo $(awk '/VmRSS/ {print $2}' /proc/$p/status) $p; done | sort -n | tail -1 | cut -d' ' -f2 | xargs kill -KILL"
    )
    sweep.cluster.run(["sh", "-c", script])
    return [job]


def kill_slurmd(sweep: Pipeline, rng: random.Random) -> Jobs:
    """Kill a slurmd. Its jobs keep running, unless the controller marks the node as failed, after 10 s."""
    node = rng.choice(sweep.cluster.nodes)
    sweep.cluster.stop(node)
    time.sleep(rng.uniform(1, 25))
    sweep.cluster.start(node)
    return []


def crash_a_node(sweep: Pipeline, rng: random.Random) -> Jobs:
    node = rng.choice(sweep.cluster.nodes)
    jobs = [job for job in sweep.jobs(state="RUNNING") if job["NodeList"] == node]
    sweep.cluster.crash(node)
    time.sleep(rng.uniform(1, 25))
    sweep.cluster.start(node)
    return jobs


def resume_nodes(sweep: Pipeline) -> None:
    """Resume drained nodes as an operator does: a node that dies while it starts a job is drained."""
    for line in sweep.cluster.run(["sinfo", "--noheader", "--Node", "--format=%N %t"]).splitlines():
        node, state = line.split()
        if state in ("drain", "drng", "down"):
            with contextlib.suppress(RuntimeError):  # on its way back already
                sweep.cluster.run(["scontrol", "update", f"NodeName={node}", "State=RESUME"], uid=0)


def stop_the_controller(sweep: Pipeline, rng: random.Random) -> Jobs:
    """Stop the controller for 30 s by SIGKILL. Callers repeat requests that it has lost."""
    asked_s, *command = getattr(sweep, "asked", (0.0,))
    forgotten = time.monotonic() - asked_s < FORGETS_S
    sweep.cluster.stop("slurmctld")
    time.sleep(30)
    sweep.cluster.start("slurmctld")
    if forgotten:
        with contextlib.suppress(RuntimeError):  # the job has ended, so it was not forgotten
            sweep.cluster.run(command)
    return []


def kill_snakemake(sweep: Pipeline, rng: random.Random) -> Jobs:
    sweep.kill()
    time.sleep(rng.uniform(0, 20))
    sweep.unlock()
    sweep.start()
    return []


def fill_the_disk(sweep: Pipeline, rng: random.Random) -> Jobs:
    filler = str(sweep.results / "filler")
    with contextlib.suppress(RuntimeError):
        sweep.cluster.run(["dd", "if=/dev/zero", f"of={filler}", "bs=64k"])
    time.sleep(rng.uniform(5, 30))
    sweep.cluster.run(["rm", "-f", filler])
    return []


FAULTS: list[Callable[[Pipeline, random.Random], Jobs]] = [
    cancel, requeue, time_out, run_out_of_memory, kill_slurmd, crash_a_node, stop_the_controller, kill_snakemake, fill_the_disk,
]  # fmt: skip


def on_a_job(sweep: Pipeline, rng: random.Random, *command: str) -> Jobs:
    job = rng.choice(sweep.jobs(state="RUNNING"))
    sweep.cluster.run([*command, job["JobId"]])
    sweep.asked = (time.monotonic(), *command, job["JobId"])
    return [job]


class Recoveries:
    """Seconds from a fault until the job runs again, requeued or as another job, by fault."""

    def __init__(self):
        self.seconds: dict[str, list[float]] = {}
        self.stages: Counter[str] = Counter()
        self._hit: dict[str, tuple[str, tuple[str, str], float]] = {}

    def note(self, fault: str, at_s: float, jobs: Jobs) -> None:
        self.seconds.setdefault(fault, [])
        for job in jobs:
            self.stages[job["Comment"].split("_")[1]] += 1
            self._hit[job["Comment"]] = fault, (job["JobId"], job["Restarts"]), at_s

    def look(self, sweep: Pipeline) -> None:
        for job in sweep.jobs(state="RUNNING") if self._hit else ():
            fault, before, at_s = self._hit.get(job["Comment"], ("", (), 0.0))
            if fault and before != (job["JobId"], job["Restarts"]):
                self.seconds[fault].append(time.monotonic() - at_s)
                del self._hit[job["Comment"]]

    def forget(self) -> None:
        """Remove faults whose job was not seen again: it ended too early, or before the fault."""
        self._hit = {}

    def __str__(self) -> str:
        lines = [
            f"{fault}: ran again after {statistics.median(times):.0f} s, at most {max(times):.0f} s ({len(times)} jobs)"
            for fault, times in self.seconds.items()
            if times
        ]
        return "\n".join([*lines, f"jobs hit: {dict(self.stages)}"])


def run_sweep(
    sweep: Pipeline, rng: random.Random, faults: int, pause_s: float, recoveries: Recoveries
) -> tuple[int, int]:
    """Run to the end under faults; return the numbers of faults and of reruns of the command."""
    told = again = done = 0
    due = sorted(rng.randrange(LAST) for _ in range(faults))  # at how many jobs done
    sweep.start()
    next_at = time.monotonic() + rng.uniform(0.3, 1.7) * pause_s
    while True:
        if sweep.process.poll() is not None:
            if sweep.process.returncode == 0:
                return told, again
            assert again < AGAIN, sweep.said()
            again += 1
            sweep.start()
        if told < faults and done >= due[told] and time.monotonic() > next_at:
            fault, at_s = rng.choice(FAULTS), time.monotonic()
            # no job runs, or it has ended meanwhile
            with contextlib.suppress(IndexError, RuntimeError, FileNotFoundError):
                jobs = fault(sweep, rng)
                told += 1
                recoveries.note(fault.__name__, at_s, jobs)
                print(f"  {fault.__name__} {', '.join(job['Comment'] for job in jobs)}", flush=True)
            next_at = time.monotonic() + rng.uniform(0.3, 1.7) * pause_s
        with contextlib.suppress(RuntimeError):  # the controller may be away
            done = len({job["Comment"] for job in sweep.jobs(state="COMPLETED")})
            recoveries.look(sweep)
            resume_nodes(sweep)
        time.sleep(0.5)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sweeps", type=int, default=20)
    parser.add_argument("--faults", type=int, default=10, help="in each sweep, as far as it lasts")
    parser.add_argument(
        "--pause",
        type=float,
        default=5,
        metavar="S",
        help="between faults, on average, beside the jobs that are waited for",
    )
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    wrong, recoveries = 0, Recoveries()
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
                told, again = run_sweep(sweep, random.Random(number), given.faults, given.pause, recoveries)
                recoveries.forget()
                cluster.run(["sh", "-c", f"cp -r {sweep.results} {sweep.folder}/copy"])
                right = read_scores(sweep.folder / "copy") == expected
                wrong += not right
                took_s = time.monotonic() - start
                print(
                    f"sweep {number}: {told} faults, command given again {again} times, {len(sweep.jobs())} jobs, {took_s:.0f} s, "
                    f"scores {'right' if right else 'WRONG'}",
                    flush=True,
                )
    print(recoveries)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())

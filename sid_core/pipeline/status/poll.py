"""Determine the status of every job from files, without torch, in half a second.

Done: the output exists; `snakemake -n` lists reruns after a change of settings. Running, in this order: a lease on the training
state, from any host; a process of this host; a mark in .snakemake/incomplete, which outlives a kill, with a fresh log or a cluster's
job that squeue still lists. Times come from finished jobs (benchmarks/), records of running jobs, else the estimates of `plan`.
"""

import json
import time
from base64 import urlsafe_b64decode
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

from ...cluster.machine import ask
from ...config import Config
from ...storage import job_record
from ...storage.job_record import record_path
from ...storage.lease import living_owner
from ..paths import Results
from ..plan import make_plan
from .jobs import Job, jobs

FRESH_S = 120.0  # age of a log up to which its process may run on another machine
SHORT_S = 15.0  # duration of a job without an estimate, mostly of imports
TAIL = 4096  # bytes read of a training log


@dataclass(frozen=True)
class JobStatus:
    """State of a job, details, and the seconds left."""

    job: Job
    state: str
    text: str = ""
    left_s: float = 0.0


def job_statuses(config: Config, folder: Path) -> list[JobStatus]:
    """Return the status of every job in `folder` (results/EXPERIMENT, two levels below where Snakemake runs)."""
    everything, here = jobs(config), _processes()
    marks = _marks(folder.absolute())  # not resolved: results/ may be a link, and .snakemake is next to it
    gone = _gone({cluster_job for cluster_job, _ in marks.values() if cluster_job}, folder)
    states = {job: _state(job, folder, here, marks, gone) for job in everything}
    speed = _expectations(config, folder, states)
    return [
        JobStatus(job, state, text, 0.0 if state == "done" else _left_s(job, folder, state, speed))
        for job, (state, text) in states.items()
    ]


def _state(
    job: Job, folder: Path, here: set[tuple[str, Path]], marks: dict[str, tuple[str | None, float]], gone: set[str]
) -> tuple[str, str]:
    """Return state and details of a job. `gone`: cluster jobs that have ended."""
    output, log = folder / job.output, folder / job.log
    owner = living_owner(Results(folder).state(job.name).folder) if job.stage == "distill" else None
    if owner:
        where = f"process {owner['pid']}" if owner["job"] is None else f"Slurm job {owner['job']}"
        heartbeat = f"last heartbeat {owner['age_s']:.0f} s ago"
        return "running", _progress(job, folder, f"{where} on {owner['host']}", heartbeat)
    # --out of a stage: the output, its folder, or the file that the output is the sidecar of
    targets = {output, output.parent, output.with_suffix(".tar"), output.with_suffix(".safetensors")}
    if any((job.stage, target.resolve()) in here for target in targets):
        return "running", _progress(job, folder)
    if output.is_file():
        return "done", ""
    logged = log.stat().st_mtime if log.is_file() else 0.0
    if job.output in marks:
        cluster_job, marked = marks[job.output]
        if cluster_job in gone:
            if logged < marked:
                return "stopped", f"cluster job {cluster_job} ended before it began: cancelled, or it could not start"
        elif cluster_job and logged < marked:
            return "queued", f"cluster job {cluster_job}"
        elif cluster_job or time.time() - logged < FRESH_S:
            where = f"cluster job {cluster_job}" if cluster_job else "on another machine"
            return "running", _progress(job, folder, where)
    if not logged or (folder / job.benchmark).is_file():
        return "waiting", ""  # the job succeeded, and its files were deleted later
    record = job_record.read(record_path(log))
    state = "failed" if record.get("ended") == "failed" else "stopped"
    return state, record.get("message", "ended without a message: killed, or out of memory or time")


def _tail(path: Path) -> str:
    with suppress(FileNotFoundError), open(path, "rb") as handle:
        handle.seek(max(0, handle.seek(0, 2) - TAIL))
        return handle.read().decode(errors="replace")
    return ""


def _images(job: Job, folder: Path) -> tuple[float, float, float] | None:
    """Return the images done, their total and images/s from a job's log or record; None without any."""
    if job.stage == "distill":
        for line in reversed(_tail(Results(folder).state(job.name).training).splitlines()):
            # the last line may be incomplete, the first is cut
            with suppress(json.JSONDecodeError, KeyError, TypeError):
                point = json.loads(line)
                return point["nimg"], 1000 * job.kimg, point["images_per_s"]
        return None
    record = job_record.read(record_path(folder / job.log))
    return (record["done"], record["total"], record["images_per_s"]) if "done" in record else None


def _progress(job: Job, folder: Path, *more: str) -> str:
    """Format the progress of a running job, and `more`."""
    images = _images(job, folder)
    if images is None:
        return ", ".join(more)
    done, total, speed = images
    return ", ".join([f"{done:,.0f} of {total:,.0f} images ({done / total:.0%}), {speed:.0f} images/s", *more])


def _processes() -> set[tuple[str, Path]]:
    """Return stage and --out of the processes on this host, from their command lines."""
    found = set()
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError, StopIteration, IndexError):  # it ended, belongs to another user, or is no stage
            words = (process / "cmdline").read_bytes().decode(errors="replace").split("\0")
            start = next(i for i, word in enumerate(words) if word == "sid_core" or word.endswith("/sid-core"))
            out = next(words[i + 1] for i, word in enumerate(words) if word in ("--out", "--results"))
            found.add((words[start + 1], ((process / "cwd").readlink() / out).resolve()))
    return found


def _marks(results: Path) -> dict[str, tuple[str | None, float]]:
    """Read Snakemake's marks of unfinished outputs: cluster job and time, by path below `results`."""
    root = results.parents[1]
    folder, found = root / ".snakemake" / "incomplete", {}
    for mark in folder.rglob("*"):
        with suppress(OSError, ValueError):  # it was removed, is no mark, or belongs to another experiment
            parts = mark.relative_to(folder).parts  # of a long name, which Snakemake splits
            name = "".join(part.removeprefix("@") for part in parts)
            output = (root / urlsafe_b64decode(name).decode()).relative_to(results)
            found[str(output)] = (json.loads(mark.read_text())["external_jobid"], mark.stat().st_mtime)
    # a Slurm job's own Snakemake rewrites its marks without the job; sid_core.cluster.slurm records them
    registry = root / ".snakemake" / "slurm_jobs.jsonl"
    for line in registry.read_text(encoding="utf-8").splitlines() if registry.is_file() else ():
        with suppress(json.JSONDecodeError):  # it is being written
            entry = json.loads(line)
            for output in {str(root / name) for name in entry["output"]}:
                name = output.removeprefix(f"{results}/")
                if name in found:
                    found[name] = (entry["job"], found[name][1])
    return found


def _gone(cluster_jobs: set[str], folder: Path) -> set[str]:
    """Return the jobs that squeue does not list; none where squeue is missing or times out."""
    if not cluster_jobs:
        return set()
    user = folder.stat().st_uid  # the caller may be another user
    listed, problem = ask("squeue", "--noheader", f"--user={user}", "--array", "--format=%i", timeout_s=10)
    return cluster_jobs - set(listed.split()) if problem is None else set()


def _expectations(config: Config, folder: Path, states: dict[Job, tuple[str, str]]) -> dict[str, float]:
    """Estimate the seconds of a job by stage, and by stage and method; of a distillation per thousand images.

    Methods differ in their network passes, which torch's code counts: a method is known once one of its runs has started.
    """
    measured: dict[str, list[float]] = {}
    rates: dict[str, list[float]] = {}
    for job, (state, _) in states.items():
        if state == "done":
            with suppress(OSError, ValueError, IndexError):  # written by hand, or by another version
                seconds = float((folder / job.benchmark).read_text().splitlines()[1].split("\t")[0])
                for key in {job.stage, _kind(job)}:
                    measured.setdefault(key, []).append(seconds / job.kimg)
        elif job.stage == "distill" and state == "running" and (images := _images(job, folder)):
            for key in {job.stage, _kind(job)}:
                rates.setdefault(key, []).append(1000 / images[2])
    expected = {key: mean(values) for key, values in (rates | measured).items()}
    for planned in make_plan(config):
        name, *rest = planned.name.split()
        stage = "generate-baseline" if name == "generate" and len(rest) == 1 else name
        seconds = 3600 * planned.hours / (float(rest[0].replace(",", "")) if name == "distill" else 1)
        expected.setdefault(stage, seconds or SHORT_S)
    return expected


def _left_s(job: Job, folder: Path, state: str, expected: dict[str, float]) -> float:
    images = _images(job, folder) if job.stage == "distill" or state == "running" else None
    if images and state == "running":
        return (images[1] - images[0]) / images[2]
    part = 1 - images[0] / images[1] if images else 1  # a distillation resumes from its checkpoint
    return part * job.kimg * expected.get(_kind(job), expected.get(job.stage, SHORT_S))


def _kind(job: Job) -> str:
    return f"{job.stage} {job.method}".rstrip()

"""Test how independent jobs of one machine acquire GPUs. CUDA_VISIBLE_DEVICES names the GPUs; none is opened."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

import pytest
from project import Project

from sid_core.cluster import gpus, machine
from sid_core.errors import UserError

APART = ["unshare", "--user", "--map-root-user", "--net", "--pid", "--fork"]


@pytest.fixture
def names(monkeypatch):
    """Return names(n): simulate a machine with n GPUs under unique names."""
    monkeypatch.setattr(gpus, "POLL_S", 0.02)
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    # tests may run at the same time on one machine, beside jobs that have real GPUs
    monkeypatch.setattr(gpus, "PREFIX", f"test-{uuid.uuid4()}-")

    def make(count):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", ",".join(f"gpu{i}" for i in range(count)))

    yield make
    for left in gpus.FOLDER.glob(f"{gpus.PREFIX}*"):
        left.rmdir()


def job(count, seconds, taken):
    """Report the GPUs of a process, when it acquired and when it released them."""
    with gpus.acquire_gpus(count):
        seen = gpus.visible_gpus()
        began = time.monotonic()
        time.sleep(seconds)
        taken.put((seen, began, time.monotonic()))


@pytest.fixture
def start():
    """Return start(count, seconds) -> a job's process; `start.taken` queues their reports."""
    fork = multiprocessing.get_context("fork")
    started = []

    def begin(count, seconds=0.3):
        started.append(fork.Process(target=job, args=(count, seconds, begin.taken)))
        started[-1].start()
        return started[-1]

    begin.taken = fork.Queue()
    yield begin
    for process in started:
        process.kill()


def test_acquire_gpus_by_concurrent_jobs_never_shares_a_gpu(names, start):
    names(3)
    for count in (2, 1, 1, 2, 3, 1, 1, 2):
        start(count, 0.05)
    jobs = [start.taken.get(timeout=30) for _ in range(8)]
    assert sorted(len(seen) for seen, _, _ in jobs) == [1, 1, 1, 1, 2, 2, 2, 3]
    for i, (seen, began, ended) in enumerate(jobs):
        for other, other_began, other_ended in jobs[:i]:
            assert not set(seen) & set(other) or ended <= other_began or other_ended <= began


def test_acquire_gpus_by_a_killed_job_is_released(names, start):
    names(2)
    stuck = start(2, 1000)
    waiting = start(1, 0)
    time.sleep(0.3)
    assert start.taken.empty()
    os.kill(stuck.pid, signal.SIGKILL)
    assert start.taken.get(timeout=10)[0] == ["gpu0"]
    waiting.join()


def test_acquire_gpus_with_a_living_child_stays_locked(names, start):
    names(1)
    with gpus.acquire_gpus(1) as held:
        child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(0.5,))
        child.start()  # forked: it has the descriptors
        assert len(held) == 1
    began = time.monotonic()
    start(1, 0)
    start.taken.get(timeout=10)
    assert time.monotonic() - began > 0.3


def test_acquire_gpus_in_another_network_namespace_waits(names):
    """Check containers, which share GPUs and /tmp, but neither sockets nor process numbers."""
    if subprocess.run([*APART, "true"], capture_output=True).returncode:
        pytest.skip("this system lets no user make namespaces")
    names(1)
    code = f"from sid_core.cluster import gpus; gpus.PREFIX = {gpus.PREFIX!r}\nwith gpus.acquire_gpus(1): print('holds', flush=True)"
    with gpus.acquire_gpus(1):
        os.environ["CUDA_VISIBLE_DEVICES"] = "gpu0"
        job = subprocess.Popen([*APART, sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
        with pytest.raises(subprocess.TimeoutExpired):
            job.wait(3)
    assert job.communicate(timeout=30)[0] == "holds\n"


def test_acquire_gpus_by_a_user_with_a_strict_umask_is_seen_by_others(names):
    names(1)
    before = os.umask(0o077)
    try:
        with gpus.acquire_gpus(1):
            (place,) = (each for each in gpus.FOLDER.glob(f"{gpus.PREFIX}*") if each.name.endswith("gpu0"))
            assert place.stat().st_mode & 0o777 == 0o755
    finally:
        os.umask(before)


def test_hold_of_a_folder_removed_meanwhile_returns_none(names, monkeypatch):
    names(1)
    lock = gpus.fcntl.flock
    monkeypatch.setattr(
        gpus.fcntl,
        "flock",
        lambda *given: [left.rmdir() for left in gpus.FOLDER.glob(f"{gpus.PREFIX}*")] and lock(*given),
    )
    assert gpus._hold("gpu0") is None


def test_acquire_gpus_of_zero_gpus_hides_all(names, start):
    names(2)
    with gpus.acquire_gpus(2):
        start(0, 0)
        assert start.taken.get(timeout=10)[0] == []


def test_acquire_gpus_of_too_many_gpus_raises(names):
    names(2)
    with pytest.raises(UserError, match=r"gpu=3: expected at most 2, the GPUs gpu0,gpu1"), gpus.acquire_gpus(3):
        pass


def test_acquire_gpus_in_a_slurm_job_leaves_its_gpus(names, monkeypatch):
    names(2)
    monkeypatch.setenv("SLURM_JOB_ID", "1")
    with gpus.acquire_gpus(1), gpus.acquire_gpus(1):
        assert gpus.visible_gpus() == ["gpu0", "gpu1"]


def test_acquire_gpus_of_local_jobs_within_a_slurm_job_shares_its_gpus(names, monkeypatch):
    names(2)
    for name in ("SLURM_JOB_ID", machine.SUBMITTER_JOB):
        monkeypatch.setenv(name, "1")
    with gpus.acquire_gpus(1):
        assert gpus.visible_gpus() == ["gpu0"]
        monkeypatch.setenv("SLURM_JOB_ID", "2")  # that it has submitted
        with gpus.acquire_gpus(1):
            assert gpus.visible_gpus() == ["gpu0"]


def test_acquire_gpus_on_exit_restores_cuda_visible_devices(names):
    names(2)
    with gpus.acquire_gpus(1):
        assert gpus.visible_gpus() == ["gpu0"]
    assert gpus.visible_gpus() == ["gpu0", "gpu1"]


@pytest.mark.parametrize(("arguments", "expected"), [((), 3), (("--profile", "workflow/profiles/local-gpu"), 8)])
def test_snakemake_gpu_total_follows_the_machine_or_the_profile(tmp_path, arguments, expected):
    project = Project(tmp_path)
    target = str((project.results / "config.yaml").relative_to(tmp_path))
    done = project.snakemake("--cores", "1", *arguments, "--", target, CUDA_VISIBLE_DEVICES="a,b,c")
    assert f'Provided resources: gpu=Resource("gpu", {expected})' in done.stdout


def test_mark_submitting_process_passes_gpus_and_slurm_job_to_jobs(monkeypatch):
    for name in (machine.SUBMITTER_CALL, machine.SUBMITTER_GPU, machine.SUBMITTER_JOB, "SLURM_JOB_ID"):
        monkeypatch.setenv(name, "7")
    machine.mark_submitting_process()
    assert os.environ[machine.SUBMITTER_GPU] == str(int(bool(list(Path("/dev").glob("nvidia[0-9]*")))))
    assert os.environ[machine.SUBMITTER_JOB] == "7"
    other = str(1 - int(os.environ[machine.SUBMITTER_GPU]))
    monkeypatch.setenv(machine.SUBMITTER_GPU, other)  # as on a node that is not as the home is
    assert machine.has_gpu() is bool(int(other))
    monkeypatch.delenv("SLURM_JOB_ID")
    machine.mark_submitting_process()
    assert machine.SUBMITTER_JOB not in os.environ
    call = os.environ[machine.SUBMITTER_CALL]
    machine.mark_submitting_process()
    assert os.environ[machine.SUBMITTER_CALL] != call

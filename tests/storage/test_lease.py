"""Test that a folder has one writer."""

import json
import os
import socket
import subprocess
import sys
import threading
import time

import pytest

from sid_core.errors import UserError
from sid_core.storage import files, heartbeat, lease


def lease_of(folder, **owner):
    values = {"host": "elsewhere", "place": "another machine", "pid": 1, "start": "1", "job": None} | owner
    (folder / "lease.json").write_text(json.dumps(values))


def test_lease_after_the_block_or_an_error_is_removed(tmp_path):
    def fail():
        with lease.lease(tmp_path):
            assert (tmp_path / "lease.json").is_file()
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    # the guard stays: were it removed, two writers could each lock a file of that name
    assert [path.name for path in tmp_path.iterdir()] == [".lease.guard"]


@pytest.mark.parametrize("content", ['{"name": "mine"}', "[]", "null"])
def test_lease_of_another_program_raises_and_stays(tmp_path, content):
    (tmp_path / "lease.json").write_text(content)
    os.utime(tmp_path / "lease.json", (0, 0))
    with pytest.raises(UserError, match=r"lease\.json: not created by sid-core"), lease.lease(tmp_path):
        pass
    assert (tmp_path / "lease.json").read_text() == content


def test_lease_of_a_second_writer_raises_and_names_the_first(tmp_path):
    with lease.lease(tmp_path), pytest.raises(UserError, match=f"process {os.getpid()}"), lease.lease(tmp_path):
        pass


def test_lease_of_a_killed_owner_is_free(tmp_path):
    code = (
        "import os, signal, sys; from sid_core.storage.lease import lease\n"
        "with lease(sys.argv[1]): os.kill(os.getpid(), signal.SIGKILL)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path)]).returncode == -9
    assert (tmp_path / "lease.json").is_file()
    with lease.lease(tmp_path):
        assert json.loads((tmp_path / "lease.json").read_text())["pid"] == os.getpid()


def test_lease_with_a_reused_pid_is_free(tmp_path):
    lease_of(tmp_path, place=heartbeat.place(), pid=os.getpid(), start="an earlier process")
    with lease.lease(tmp_path):
        pass


def test_lease_of_a_remote_owner_with_a_heartbeat_is_held(tmp_path, monkeypatch):
    monkeypatch.setattr(heartbeat, "PERIOD_S", 0.3)
    lease_of(tmp_path, job="42")
    beat = threading.Timer(0.5, os.utime, [tmp_path / "lease.json"])
    beat.start()
    with pytest.raises(UserError, match="elsewhere, Slurm job 42"), lease.lease(tmp_path):
        pass
    beat.join()


@pytest.mark.parametrize(("age_s", "waits_s"), [(0, 1.2), (-30, 1.2), (30, 1.2), (100, 0)])
def test_lease_of_a_remote_owner_without_a_heartbeat_is_free(tmp_path, monkeypatch, age_s, waits_s):
    monkeypatch.setattr(heartbeat, "PERIOD_S", 0.3)
    lease_of(tmp_path)
    last = time.time() - age_s
    os.utime(tmp_path / "lease.json", (last, last))
    with lease.lease(tmp_path):
        assert waits_s <= time.time() - last - age_s < waits_s + 5
        assert json.loads((tmp_path / "lease.json").read_text())["pid"] == os.getpid()


@pytest.mark.parametrize("place", ["another machine", None])
def test_lease_of_an_owner_of_this_hosts_name_in_another_container_is_watched(tmp_path, monkeypatch, place):
    """Watch an owner whose process number means another process here, or none."""
    monkeypatch.setattr(heartbeat, "PERIOD_S", 0.3)
    lease_of(tmp_path, host=socket.gethostname(), place=place)
    assert lease.living_owner(tmp_path)["pid"] == 1
    beat = threading.Timer(0.5, os.utime, [tmp_path / "lease.json"])
    beat.start()
    with pytest.raises(UserError, match="in use by process 1"), lease.lease(tmp_path):
        pass
    beat.join()


def test_lease_of_a_training_in_another_pid_namespace_raises(tmp_path, monkeypatch):
    apart = ["unshare", "--user", "--map-root-user", "--pid", "--fork", "--mount-proc"]
    if subprocess.run([*apart, "true"], capture_output=True).returncode:
        pytest.skip("this system lets no user make namespaces")
    code = (
        "import sys; from sid_core.storage import heartbeat, lease; heartbeat.PERIOD_S = 1\n"
        "with lease.lease(sys.argv[1]): print('took it over')"
    )
    monkeypatch.setattr(heartbeat, "PERIOD_S", 0.2)
    with lease.lease(tmp_path):
        asked = subprocess.run([*apart, sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True)
    assert f"in use by process {os.getpid()} on {socket.gethostname()}" in asked.stderr
    assert asked.stdout == ""


def test_lease_that_was_taken_over_ends_its_owner(tmp_path):
    code = (
        "import sys, time; from sid_core.storage import heartbeat, lease; heartbeat.PERIOD_S = 0.1\n"
        "with lease.lease(sys.argv[1]):\n"
        "    print('holds', flush=True); time.sleep(60)"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as owner:
        assert owner.stdout.readline() == "holds\n"
        lease_of(tmp_path)
        assert owner.wait(10) == 1
        assert (
            owner.stderr.read()
            == f"error: {tmp_path}: taken over by another process while this one was suspended; exiting\n"
        )
    assert json.loads((tmp_path / "lease.json").read_text())["host"] == "elsewhere"


def test_lease_refreshes_its_heartbeat(tmp_path, monkeypatch):
    monkeypatch.setattr(heartbeat, "PERIOD_S", 0.02)
    with lease.lease(tmp_path):
        os.utime(tmp_path / "lease.json", (0, 0))
        deadline = time.monotonic() + 5
        while (tmp_path / "lease.json").stat().st_mtime == 0:
            assert time.monotonic() < deadline
            time.sleep(0.01)


@pytest.mark.parametrize("dead_owner", [False, True])
def test_lease_of_racing_writers_has_one_owner(tmp_path, dead_owner):
    holders, most, refused, won = [], [], [], []
    start = threading.Barrier(8)
    done = threading.Event()

    def take():
        start.wait()
        try:
            with lease.lease(tmp_path):
                holders.append(1)
                most.append(len(holders))
                won.append(1)
                done.wait(5)
                holders.pop()
        except UserError:
            refused.append(1)
        if len(refused) == 7:
            done.set()

    if dead_owner:
        lease_of(tmp_path)
        os.utime(tmp_path / "lease.json", (0, 0))
    threads = [threading.Thread(target=take) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(won), len(refused), max(most)) == (1, 7, 1)


def test_lease_of_a_slow_writer_does_not_replace_a_faster_one(tmp_path, monkeypatch):
    """Delay the first to find the dead owner between reading and replacing; the second must not slip in."""
    lease_of(tmp_path, place=heartbeat.place(), pid=os.getpid(), start="an earlier process")
    looked, calls, outcomes, done = files.read_json, [], [], threading.Event()

    def slow_for_the_first(path):
        owner = looked(path)
        calls.append(path)
        time.sleep(0.5 if len(calls) == 1 else 0)
        return owner

    monkeypatch.setattr(lease, "read_json", slow_for_the_first)

    def take():
        try:
            with lease.lease(tmp_path):
                outcomes.append("holds")
                done.wait(1.5)
        except UserError:
            outcomes.append("refused")

    threads = [threading.Thread(target=take) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["holds", "refused"]

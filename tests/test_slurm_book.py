"""What is known of the jobs that a killed Snakemake has left; on a real Slurm: tests/slurm."""

import json

import pytest

from sid_core import slurm


@pytest.fixture
def squeue(tmp_path, monkeypatch):
    """A squeue that fails once, as while the controller is away, and then tells these jobs."""
    program = tmp_path / "bin" / "squeue"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\nmv {tmp_path}/away {tmp_path}/back 2> /dev/null && exit 1\necho 5; echo 7_2\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent), prepend=":")
    monkeypatch.setattr(slurm.time, "sleep", lambda _: None)
    return tmp_path


def test_a_job_waits_for_those_that_still_make_its_files(squeue):
    (squeue / "away").touch()
    before = [{"job": "5", "output": ["a", "b"]}, {"job": "6", "output": ["c"]}, {"job": "7_2", "output": ["d"]}]
    path = squeue / "jobs.jsonl"
    path.write_text(
        "".join(json.dumps(entry) + "\n" for entry in before) + '{"job": "8", "out'
    )  # killed while it wrote
    book = slurm.Book(path)
    assert book.dependency(["b", "d", "e"]) == " --dependency=afterany:5:7_2"
    assert book.dependency(["c", "e"]) == ""  # it has ended
    book.note("9", ["c"])
    assert [json.loads(line)["job"] for line in path.read_text().splitlines()] == ["5", "7_2", "9"]


def test_a_controller_that_stays_away_is_told(squeue, monkeypatch):
    (squeue / "away").touch()
    monkeypatch.setattr(slurm, "PATIENCE_S", -1)
    with pytest.raises(slurm.WorkflowError, match="run again when Slurm answers"):
        slurm.ask_squeue("--me")


def test_a_job_that_is_not_listed_for_a_while_is_lost(squeue, monkeypatch):
    clock = iter([0, 30, 60, 90, 120])
    monkeypatch.setattr(slurm.time, "monotonic", lambda: next(clock))
    unseen = slurm.Unseen()
    assert unseen.lost(["5", "6"]) == set()
    assert unseen.lost(["5", "6", "8"]) == set()
    (squeue / "away").touch()
    assert unseen.lost(["5", "6", "8"]) == set()  # no answer tells nothing
    assert unseen.lost(["5", "6", "8"]) == {"6"}
    assert unseen.lost(["5", "8"]) == {"8"}

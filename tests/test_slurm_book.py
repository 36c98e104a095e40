"""What is known of the jobs that a killed Snakemake has left; on a real Slurm: tests/slurm."""

import json

import pytest

from sid_core import slurm


@pytest.fixture
def squeue(tmp_path, monkeypatch):
    """A squeue that fails once, as while the controller is away, and then tells these jobs."""
    program = tmp_path / "bin" / "squeue"
    program.parent.mkdir()
    program.write_text(
        f"#!/bin/sh\nmv {tmp_path}/away {tmp_path}/back 2> /dev/null && exit 1\ncase $* in *%r) cat {tmp_path}/reasons;; *) echo 5; echo 7_2;; esac\n"
    )
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
    assert book.before == ["5", "7_2"]
    assert book.dependency(["b", "d", "e"]) == " --dependency=afterany:5:7_2"
    assert book.dependency(["c", "e"]) == ""  # it has ended
    book.note("9", ["c"])
    assert [json.loads(line)["job"] for line in path.read_text().splitlines()] == ["5", "7_2", "9"]


def test_a_controller_that_stays_away_is_told(squeue, monkeypatch):
    (squeue / "away").touch()
    monkeypatch.setattr(slurm, "PATIENCE_S", -1)
    with pytest.raises(slurm.WorkflowError, match="run again when Slurm answers"):
        slurm.ask_squeue("--me")


@pytest.fixture
def commands(squeue, monkeypatch):
    """What is asked of Slurm beside squeue; `write` says why jobs wait, as squeue then tells."""
    (squeue / "reasons").write_text("5 None\n7_2 Priority\n")
    for name in ("scontrol", "scancel"):
        (squeue / "bin" / name).write_text(f"#!/bin/sh\necho {name} $* >> {squeue}/commands\n")
        (squeue / "bin" / name).chmod(0o755)
    return squeue / "commands"


def test_a_job_that_is_not_listed_for_a_while_is_given_up(squeue, commands, monkeypatch):
    clock = iter([0, 30, 60, 90, 120])
    monkeypatch.setattr(slurm.time, "monotonic", lambda: next(clock))
    watch = slurm.Watch()
    assert watch.look(["5", "6"]) == {}
    assert watch.look(["5", "6", "8"]) == {}
    (squeue / "away").touch()
    assert watch.look(["5", "6", "8"]) == {}  # no answer tells nothing
    assert watch.look(["5", "6", "8"]).keys() == {"6"}
    assert "knows nothing of job 8" in watch.look(["5", "8"])["8"]
    assert not commands.exists()


def test_a_job_that_could_not_be_started_is_released_and_in_the_end_given_up(squeue, commands):
    (squeue / "reasons").write_text("5 launch failed requeued held\n6 launch failed requeued held\n7_2 Priority\n")
    watch = slurm.Watch()
    for _ in range(slurm.RELEASES):
        assert watch.look(["5", "7_2"]) == {}  # 6 is not this pipeline's
    assert "could not start job 5 in 4 attempts; sinfo -R" in watch.look(["5", "7_2"])["5"]
    assert commands.read_text().splitlines() == ["scontrol release 5"] * 3 + ["scancel 5"]


def test_where_sacct_tells_ends_squeue_may_forget(squeue, commands, monkeypatch):
    (squeue / "reasons").write_text("5 launch failed requeued held\n")
    clock = iter([0, 1000])
    monkeypatch.setattr(slurm.time, "monotonic", lambda: next(clock))
    watch = slurm.Watch()
    assert [watch.look(["5", "8"], forgotten_is_lost=False) for _ in range(2)] == [{}, {}]
    assert commands.read_text().splitlines() == ["scontrol release 5"] * 2

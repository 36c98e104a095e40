"""Test the record of a job's progress and end, next to its log."""

import json
import subprocess
import sys

import pytest

from sid_core.storage.job_record import record_path


@pytest.fixture
def run(tmp_path):
    """Return run(code) -> the record of a process that prints to a log, or None."""

    def run(code: str, name: str = "job.log"):
        log = tmp_path / name
        with open(log, "w") as file:
            subprocess.run([sys.executable, "-c", code], stderr=file)
        path = record_path(log)
        return json.loads(path.read_text()) if path.is_file() else None

    return run


def test_progress_writes_a_record_beside_the_log(run):
    code = "from sid_core.storage.progress import Progress\np = Progress('x', 20)\np.update(10)"
    record = run(code)
    assert (record["done"], record["total"]) == (10, 20)
    assert record["images_per_s"] > 0
    assert run(code, "job.txt") is None


@pytest.mark.parametrize(
    ("raised", "ended", "message"),
    [
        ("cli.UserError('x=1: expected 2')", "failed", "x=1: expected 2"),
        ("KeyboardInterrupt", "interrupted", "interrupted; "),
        ("ValueError('a defect')", "failed", "ValueError: a defect"),
    ],
)
def test_main_records_the_end_of_a_command_and_a_new_attempt_removes_it(run, raised, ended, message):
    """Check a command that prints a traceback, too."""
    code = "from sid_core import cli\ndef run(given): raise {}\ncli.COMMANDS['plan'] = cli.Command(run, 'x')\ncli.main(['plan'])"
    record = run(code.format(raised))
    assert record["ended"] == ended
    assert record["message"].startswith(message)
    assert run(code.replace("raise {}", "return None")) is None

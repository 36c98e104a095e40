"""Run the smallest experiment on a Slurm cluster, for the tests, faults.py and benchmarks/slurm_speed.py."""

import contextlib
import copy
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from cluster import Cluster
from project import ROOT, Project

PROFILE = ("--profile", "workflow/profiles/slurm")
PATIENCE_S = 900


def install_plugin(folder: Path) -> Path:
    """Install the profile's locked packages into a separate folder: next to Snakemake they would slow every call."""
    uv = [Path(sys.executable).with_name("uv"), "pip", "install", "--quiet", "--python", sys.executable]
    subprocess.run(
        [
            *uv,
            "--no-deps",
            "--require-hashes",
            "--compile-bytecode",
            "-r",
            ROOT / "requirements-slurm.lock",
            "--target",
            folder,
        ],
        check=True,
    )
    return folder


class Pipeline(Project):
    """A copy of the workflow that is run by Slurm, as this user or as `uid`."""

    def __init__(self, folder: Path, cluster: Cluster, plugin: Path, uid: int = 0, **blocks):
        self.cluster, self.plugin, self.uid, self.blocks = cluster, plugin, uid, blocks
        folder.mkdir()
        self.log = folder / "snakemake.log"
        super().__init__(folder)

    def configure(self, **blocks) -> None:
        super().configure(**copy.deepcopy(self.blocks) | blocks)

    def start(self, *arguments: str) -> None:
        """Start snakemake on the submit host; what it says goes to `log`."""
        if self.uid:
            subprocess.run(["chown", "-R", str(self.uid), self.folder], check=True)
        paths = [str(self.plugin), os.environ.get("PYTHONPATH", "")]
        given = {"PYTHONPATH": ":".join(filter(None, paths)), "HOME": str(self.folder), "OMP_NUM_THREADS": "1"}
        # with the profile's 30/10s each call of Snakemake ends up to 10 s after its last job
        command = [sys.executable, "-m", "snakemake", *PROFILE, "--max-jobs-per-timespan", "30/1s", *arguments]
        with open(self.log, "a") as log:
            self.process = self.cluster.popen(
                ["sh", "-c", 'echo $$ > pid && exec "$@"', "sh", *command],
                cwd=self.folder,
                uid=self.uid,
                env=given,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                # tests that were started in a shell's background ignore it, and so would Snakemake
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
            )

    def finish(self, returncode: int = 0, patience_s: float = PATIENCE_S) -> str:
        """Wait for snakemake to end; returns what it said."""
        try:
            code = self.process.wait(patience_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"not done after {patience_s} s:\n{self.said()}") from None
        assert code == returncode, self.said()
        return self.said()

    def said(self) -> str:
        return self.log.read_text()[-20_000:]

    def kill(self, signum: int = signal.SIGKILL) -> None:
        """Send a signal to snakemake on the submit host. After SIGKILL its jobs keep running."""
        self.cluster.run(["kill", f"-{int(signum)}", (self.folder / "pid").read_text().strip()], uid=0)
        self.process.wait(PATIENCE_S)

    def unlock(self) -> None:
        self.start("--unlock")
        self.finish()

    def jobs(self, rule: str = "", state: str = "") -> list[dict[str, str]]:
        """Return this pipeline's jobs, the newest last."""
        found = [
            job
            for job in self.cluster.jobs()
            if job["WorkDir"] == str(self.folder)
            and job["Comment"].startswith(f"rule_{rule}")
            and job["JobState"].startswith(state)
        ]
        return sorted(found, key=lambda job: int(job["JobId"]))

    def wait_for(self, rule: str, state: str = "RUNNING", until=lambda job: True) -> dict[str, str]:
        """Wait until the newest job of a rule or group is in a state, and return it."""
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            with contextlib.suppress(RuntimeError):  # the controller may be away
                jobs = self.jobs(rule, state)
                if jobs and until(jobs[-1]):
                    return jobs[-1]
            assert self.process.poll() is None, self.said()
            time.sleep(0.2)
        raise AssertionError(f"no job of {rule} in state {state}:\n{self.said()}")

    def scores(self) -> dict[str, dict]:
        return read_scores(self.results)


def read_scores(results: Path) -> dict[str, dict]:
    """Read all scores of an experiment without throughputs, and the generators' checksums, which cover every weight."""
    scores = {
        str(path.parent.relative_to(results)): json.loads(path.read_text()) for path in results.glob("*/*/score.json")
    }
    for score in scores.values():
        del score["images_per_s"]
    return scores

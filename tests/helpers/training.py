"""Run a tiny distillation in Slurm jobs as the workflow does, but without Snakemake, which takes most of a job's time."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from cluster import Cluster
from safetensors.torch import load_file
from small_run import make_settings

from sid_core.cluster.machine import SUBMITTER_CALL
from sid_core.config import Prompts, PromptsSettings, dump
from sid_core.data.prompts import prepare_prompts

RUN = "lsg-1.5"
SLOWLY = Path(__file__).parents[1] / "slurm" / "slow"
PATIENCE_S = 300
# Snakemake's plugin leaves a job's commands as much of what sbatch has set
BARE = r"unset $(env | sed -n 's/^\(SLURM_[A-Z_]*\)=.*/\1/p' | grep -vx SLURM_JOB_ID)"


class Training:
    """The tiny teacher's distillation in a folder of its own: 240 iterations, a point of the log for each."""

    def __init__(self, folder: Path, teacher: Path):
        self.folder, self.log = folder, folder / "log.txt"
        self.state, self.generator = folder / "state" / RUN, folder / "generator"
        folder.mkdir()
        prepare_prompts(PromptsSettings(prompts=Prompts(train=5, evaluation=1)), folder / "prompts", teacher)
        settings = make_settings(
            train_kimg=0.96, micro_batch=2, log_every_nimg=4, samples_every_nimg=960, state_every_nimg=40
        )
        (folder / "settings.yaml").write_text(dump(settings))
        self._teacher = teacher

    def command(self, *options: str) -> list[str]:
        """Return the rule's command."""
        stage = {
            "settings": self.folder / "settings.yaml",
            "teacher": self._teacher,
            "prompts": self.folder / "prompts" / "train.txt",
            "state": self.state,
            "tracking": self.folder / "tracking.json",
            "out": self.generator,
        }
        given = [text for name, path in stage.items() for text in (f"--{name}", str(path))]
        launch = [sys.executable, "-m", "sid_core.cluster.launch", "--state", str(self.state), *options]
        return [*launch, "--", "distill", *given, "--threads", "1"]

    def start(self, *options: str) -> subprocess.Popen:
        """Start it without Slurm."""
        with open(self.log, "w") as log:
            return subprocess.Popen(self.command(*options), stdout=log, stderr=subprocess.STDOUT)

    def submit(self, cluster: Cluster, *options: str, sbatch: tuple[str, ...] = (), slowly: bool = True) -> str:
        """Submit it as a Slurm job such as Snakemake's; return its id."""
        self.cluster = cluster
        shell = f"{BARE}; exec {' '.join(self.command(*options))} >> {self.log} 2>&1"
        job = [f"--comment=rule_distill_wildcards_{RUN}", "--time=60", "--output=/dev/null"]
        paths = [str(SLOWLY)] * slowly + [os.environ.get("PYTHONPATH", "")]
        environment = {"PYTHONPATH": ":".join(filter(None, paths)), "OMP_NUM_THREADS": "1", SUBMITTER_CALL: "1"}
        self.job = cluster.run(
            ["sbatch", "--parsable", "--mem=2000", *job, *sbatch, f"--wrap={shell}"], cwd=Path.cwd(), env=environment
        ).strip()
        return self.job

    def wait_for_the_end(self) -> str:
        """Wait until the job has ended; return its Slurm state."""
        self.wait_until(lambda: self.shown()["JobState"] not in ("PENDING", "RUNNING", "COMPLETING", "REQUEUED"))
        return self.shown()["JobState"]

    def shown(self) -> dict[str, str]:
        """Return the job as scontrol shows it."""
        return next(job for job in self.cluster.jobs() if job["JobId"] == self.job)

    def wait_until(self, ready: Callable[[], bool], meanwhile: Callable[[], object] = lambda: None) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not ready():
            assert time.monotonic() < deadline, f"{self.shown()}\n{self.said()}"
            meanwhile()
            time.sleep(0.3)

    def said(self) -> str:
        return self.log.read_text() if self.log.exists() else ""

    def nimg(self) -> int:
        """Return the images seen by the last log entry."""
        points = self.points()
        return points[-1]["nimg"] if points else 0

    def points(self) -> list[dict]:
        """Return the log without its times."""
        path = self.state / "training.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        return [
            {key: value for key, value in json.loads(line).items() if key not in ("elapsed_s", "gpu_s", "images_per_s")}
            for line in lines
            if line.endswith("}")
        ]

    def starts(self) -> list[dict]:
        """Return the training's starts, as `launch` counts them."""
        path = self.state / "starts.json"
        return json.loads(path.read_text()) if path.exists() else []

    def weights(self) -> dict:
        return load_file(self.generator / "unet" / "diffusion_pytorch_model.safetensors")

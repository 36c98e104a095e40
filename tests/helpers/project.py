"""Copy the workflow into a folder with the smallest experiment."""

import copy
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[2]
SMALLEST = {
    "experiment": "smallest",
    "guidance_scales": [1.5],
    "prompts": {"source": "embedded", "train": 32, "evaluation": 64, "split": "validation"},
    "distill": {
        "train_kimg": 0.032,
        "batch": 8,
        "micro_batch": 8,
        "state_every_nimg": 16,
        "log_every_nimg": 8,
        "samples_every_nimg": 16,
    },
    "generate": {"samples": 32, "samples_per_shard": 32, "batch": 16},
    "baselines": {"steps": [1], "guidance_scales": [1.5], "vae": False, "real": False},
    "evaluate": {"reference_samples": 100},
}


class Project:
    """A copy of the workflow with a configuration of its own."""

    def __init__(self, folder: Path):
        self.folder, self.results = folder, folder / "results" / "smallest"
        for name in ("Snakefile", "environment.yml"):
            shutil.copy(ROOT / name, folder)
        shutil.copytree(ROOT / "workflow", folder / "workflow")
        (folder / "profiles").symlink_to("workflow/profiles")
        self.configure()

    def configure(self, **blocks) -> None:
        """Write config.yaml: the shipped one, with SMALLEST and then `blocks` over it."""
        config = yaml.safe_load((ROOT / "config.yaml").read_text())
        for values in (SMALLEST, blocks):
            for key, value in copy.deepcopy(values).items():
                config[key] = config.get(key, {}) | value if isinstance(value, dict) else value
        (self.folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))

    def snakemake(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
        """Run snakemake here, in the environment of a user who has not activated anything."""
        plain = {key: value for key, value in os.environ.items() if key not in ("VIRTUAL_ENV", "MLFLOW_TRACKING_URI")}
        return subprocess.run(
            [sys.executable, "-m", "snakemake", *arguments],
            cwd=self.folder,
            env=plain | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, *arguments: str) -> str:
        done = self.snakemake("--cores", "2", *arguments)
        assert done.returncode == 0, done.stdout
        return done.stdout

    def planned(self, *arguments: str) -> dict[str, int]:
        """Return the number of jobs by rule in a dry run."""
        done = self.snakemake("--dry-run", *arguments)
        assert done.returncode == 0, done.stdout
        jobs = dict(re.findall(r"^(\w+) +(\d+)$", done.stdout, re.M))
        return {rule: int(count) for rule, count in jobs.items() if rule not in ("all", "total")}

    def complaint(self, *arguments: str) -> str:
        """Return the output of a run that fails."""
        done = self.snakemake("--cores", "1", *arguments)
        assert done.returncode == 1
        assert "Traceback" not in done.stdout
        return done.stdout

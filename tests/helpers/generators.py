"""Make results of an experiment with finished generators: the tiny teacher's own weights."""

import shutil
from pathlib import Path

from sid_core import config as c
from sid_core.models.teacher import teacher_sha256
from sid_core.storage.files import write_json, write_manifest


def write_results(folder: Path, config: c.Config, runs: list[c.Run], teacher: Path) -> None:
    """Write config.yaml, a link to the teacher, and a finished generator for each of `runs`."""
    for run in runs:
        generator = folder / "runs" / run.name / "generator"
        shutil.copytree(teacher / "unet", generator / "unet")
        record = {"run": run.model_dump(), "t_init": 625, "num_steps": 1, "teacher_sha256": teacher_sha256(teacher)}
        write_json(generator / "generator.json", record)
        write_manifest(generator)
    (folder / "config.yaml").write_text(c.dump(config))
    (folder / "teacher").symlink_to(teacher)

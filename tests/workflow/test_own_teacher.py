"""Test the file in docs/how-to/own-teacher.md with a tiny fine-tune and tiny networks."""

import re
import shutil

import pytest
import tiny_parts
import yaml
from project import ROOT, Project

from sid_core.config import load_config
from sid_core.storage.files import read_json

[PAGE] = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs" / "how-to" / "own-teacher.md").read_text(), flags=re.S)


class OwnTeacher(Project):
    """A copy of the workflow with the shipped config.yaml, run as `snakemake --configfile mine.yaml small.yaml`."""

    def __init__(self, folder, teacher):
        super().__init__(folder)
        self.results = folder / "results" / "mine"
        shutil.copy(ROOT / "config.yaml", folder)
        tiny_parts.sd_repository(teacher, folder / "models" / "my-diffusion")
        tiny_parts.coco_zip(folder / "images.zip", 24)
        tiny_parts.inception(folder / "inception.pt")
        tiny_parts.clip_repository(folder / "clip")
        for name in ("prompts", "captions"):
            (folder / f"{name}.txt").write_text("".join(f"a {name[:-1]} of {i} dots\n" for i in range(16)))
        here = PAGE.replace("/models", str(folder / "models")).replace("/data/images", str(folder / "images.zip"))
        (folder / "mine.yaml").write_text(here)
        small = {
            "guidance_scales": [1.5],
            "distill": {"train_kimg": 0.016, "batch": 8, "precision": "float32", "compile": False},
            "generate": {"samples": 16, "samples_per_shard": 16, "precision": "float32"},
            "baselines": {"steps": []},
            "evaluate": {"reference_samples": 24, "feature_network": "inception.pt", "clip": "clip"},
            "resources": {
                stage: {"gpu": 0, "threads": 1} for stage in ("distill", "generate", "reference", "features")
            },
            "tracking": {"enabled": False},
        }
        (folder / "small.yaml").write_text(yaml.safe_dump(small))

    def configure(self, **blocks) -> None:
        """Keep the shipped config.yaml."""

    def snakemake(self, *arguments: str, **environment: str):
        return super().snakemake(*arguments, "--configfile", "mine.yaml", "small.yaml", **environment)


@pytest.fixture(scope="module")
def project(tiny_teacher_source, tmp_path_factory):
    return OwnTeacher(tmp_path_factory.mktemp("own"), tiny_teacher_source)


def test_file_of_a_fine_tune_has_at_most_ten_lines():
    assert len(PAGE.splitlines()) <= 10


def test_file_of_a_fine_tune_prepares_its_teacher_and_prompts(project):
    project.run("--until", "prompts")
    assert read_json(project.results / "teacher" / "provenance.json")["source"] == "local"
    assert read_json(project.results / "prompts" / "report.json")


def test_file_of_a_fine_tune_plans_one_distillation_and_its_score(project):
    planned = project.planned()
    assert planned["distill"] == planned["score"] == 1
    config = load_config(project.folder / "config.yaml", project.folder / "mine.yaml")
    assert config.teacher.path == str(project.folder / "models" / "my-diffusion")
    assert (config.distill.lr, config.distill.batch, config.evaluate.protocol) == (1e-6, 512, "mine")


@pytest.mark.slow
def test_file_of_a_fine_tune_runs_to_its_report(project):
    project.run()
    assert (project.results / "report.html").is_file()
    assert not project.planned()

"""Run the rules with a teacher whose network is in `transformer/`, and again: no rule names the files of a family."""

import os
from pathlib import Path

import pytest
from project import Project
from tiny_flow import write_teacher

REGISTER = """
import sys
if any(argument.startswith("sid_core") for argument in sys.orig_argv):  # not in Snakemake's own processes, to save seconds
    from sid_core.models import backbones
    from tiny_flow import TinyFlow
    backbones.FAMILIES.append(TinyFlow)
"""


class FlowProject(Project):
    """A project of the tiny flow-matching family, which every subcommand registers when it starts."""

    def __init__(self, folder: Path):
        super().__init__(folder)
        (folder / "site").mkdir()
        (folder / "site" / "sitecustomize.py").write_text(REGISTER)
        captions = [f"a {'very ' * i}red dot" for i in range(32)]
        (folder / "captions.txt").write_text("\n".join(captions) + "\n")
        (folder / "teacher").mkdir()
        write_teacher(folder / "teacher" / "source")
        self.configure(
            preset="sd15",
            distill={"precision": "float32", "compile": False, "train_kimg": 0.032, "batch": 8},
            resources={"distill": {"gpu": 0, "threads": 1}},
            teacher={"source": "local", "path": "teacher/source"},
            prompts={"source": "file", "train": "captions.txt", "evaluation": "captions.txt"},
            evaluate={"protocol": "mine"},
            tracking={"enabled": False},
        )
        self.record = self.results / "runs" / "lsg-1.5" / "generator" / "generator.json"

    def snakemake(self, *arguments: str, **environment: str):
        paths = [
            str(self.folder / "site"),
            str(Path(__file__).parents[1] / "helpers"),
            os.environ.get("PYTHONPATH", ""),
        ]
        target = [*arguments, "--", str(self.record.relative_to(self.folder))]
        return super().snakemake(*target, **environment, PYTHONPATH=os.pathsep.join(filter(None, paths)))


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    project = FlowProject(tmp_path_factory.mktemp("flow"))
    project.run()
    return project


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_distill_of_another_family_writes_its_own_layout(project):
    assert files(project.record.parent).keys() == {
        "generator.json",
        "manifest.json",
        "transformer/config.json",
        "transformer/diffusion_pytorch_model.safetensors",
    }


def test_forced_rules_replace_their_folders(project):
    before = files(project.results)
    project.run("--forcerun", "teacher", "distill")
    after = files(project.results)
    weights = [name for name in before if name.endswith(".safetensors") and "state" not in name]
    assert len(weights) == 4
    assert {name: after[name] for name in weights} == {name: before[name] for name in weights}


@pytest.mark.parametrize("rule", ["distill", "teacher"])
def test_forced_rule_of_a_folder_with_a_user_file_keeps_it(project, rule):
    folder = {"teacher": project.results / "teacher", "distill": project.record.parent}[rule]
    (folder / "notes.txt").write_text("mine")
    message = f"{folder.relative_to(project.folder)}: exists and is not created by sid-core (notes.txt in it)"
    assert message in project.complaint("--forcerun", rule)
    assert (folder / "notes.txt").read_text() == "mine"

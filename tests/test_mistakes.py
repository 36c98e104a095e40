"""Test wrong and missing inputs of every command: one error, exit code 1, no traceback, nothing written."""

import shutil
from pathlib import Path

import pytest

from sid_core import cli
from sid_core import config as c
from sid_core.models.teacher import teacher_sha256
from sid_core.pipeline.settings import stage_settings
from sid_core.storage.files import write_json, write_manifest

ROOT = Path(__file__).parents[1]
# commands without inputs, and arguments that no command reads
WITHOUT_INPUTS = {"tracking-init"}
OUTPUTS = {"out", "state", "tracking", "experiment", "repo"}
POSITIONAL = {"runs", "files", "network", "benchmark", "file"}
# inputs that are looked at after, or together with, another one, which is named instead
AFTER_OTHERS = {
    ("distill", "prompts"), ("score", "reference"), ("score", "captions"), ("import-official", "teacher"),
    ("export-benchmark", "generator"),
}  # fmt: skip


@pytest.fixture(scope="module")
def inputs(tiny_teacher, tmp_path_factory):
    """Make a valid value for every argument, in a folder with config.yaml: each test spoils one of them."""
    folder = tmp_path_factory.mktemp("inputs")
    config = c.load_config(ROOT / "config.yaml")
    (folder / "config.yaml").write_text(c.dump(config))
    blocks = stage_settings(config)
    run = next(name for name in blocks if name.startswith("runs/"))
    baseline = next(name for name in blocks if name.startswith("baselines/"))
    files = {
        "teacher": "teacher.settings.yaml",
        "prompts": "prompts.settings.yaml",
        "distill": run if run.endswith("settings.yaml") else run.replace("generate", "settings"),
        "generate": run.replace("settings.yaml", "generate.yaml"),
        "generate-baseline": baseline,
        "evaluation-networks": "reference/settings.yaml",
        "reference": "reference/settings.yaml",
        "features": "features.settings.yaml",
        "score": "score.settings.yaml",
    }
    for stage, name in files.items():
        (folder / f"{stage}.yaml").write_text(c.dump(blocks[name]))
    (folder / "real-pairs.yaml").write_text(c.dump(c.Real()))
    (folder / "resample.yaml").write_text(c.dump(c.ResampleSettings(run=c.runs(config)[0], source="lsg-2")))
    results = folder / "results" / "shapes"
    generator = results / "runs" / "lsg-2" / "generator"
    shutil.copytree(tiny_teacher / "unet", generator / "unet")
    write_json(
        generator / "generator.json", {"t_init": 625, "num_steps": 1, "teacher_sha256": teacher_sha256(tiny_teacher)}
    )
    write_manifest(generator)
    shutil.copytree(tiny_teacher, results / "teacher")
    (results / "config.yaml").write_text(c.dump(config))
    prompts = results / "prompts"
    prompts.mkdir()
    for name in ("train.txt", "evaluation.txt"):
        (prompts / name).write_text("a cat\na dog\n")
    write_manifest(prompts)
    exported = folder / "exported"
    exported.mkdir()
    write_manifest(exported, {"benchmark": "geneval"})
    right = {
        "benchmark": "geneval",
        "file": folder / "results.jsonl",
        "exported": exported,
        "row": results / "runs" / "lsg-2",
        "teacher": results / "teacher",
        "prompts": prompts / "train.txt",
        "captions": prompts / "evaluation.txt",
        "generator": generator,
        "range": ("0", "1"),
        "samples": folder / "00000.tar",
        "features": folder / "00000.safetensors",
        "reference": folder / "reference.safetensors",
        "results": results,
        "prompt": "a cat",
        "pipeline": folder / "pipeline",
        "runs": results / "runs" / "lsg-2",
        "files": folder / "votes.json",
        "network": folder / "network.pkl",
        "configfile": ROOT / "experiments" / "sd15.yaml",
    }
    return folder, right


def optional(stage: str) -> list[str]:
    """Return inputs that are no required options."""
    files = {
        "report": ["settings", "results"],
        "compare": ["runs"],
        "vote": ["runs"],
        "votes": ["files"],
        "import-official": ["network"],
    }
    return (files | {"plan-memory": ["teacher"]}).get(stage, [])


def cases() -> list[tuple[str, str]]:
    """Return every command with each of its inputs that is a file or folder."""
    found = []
    for stage, command in cli.COMMANDS.items():
        names = [name for name in command.needs if name not in OUTPUTS | {"range", "prompt"}] + optional(stage)
        if stage in ("plan", "doctor", "status"):
            names.append("configfile")
        found += [(stage, name) for name in names]
    return found


def arguments(stage: str, inputs: tuple, tmp_path: Path, **spoilt: object) -> list[str]:
    folder, right = inputs
    values = right | {"settings": folder / f"{stage}.yaml"} | spoilt
    values |= {name: tmp_path / "made" / name for name in ("out", "state", "tracking")} | {
        "experiment": "x",
        "repo": "a/b",
    }
    line = [stage]
    needed = cli.COMMANDS[stage].needs + (["settings", "results"] if stage == "report" else [])
    if stage.endswith("-benchmark"):
        needed = ["benchmark", *(["file"] if stage.startswith("import") else []), *needed]
    for name in [*needed, *(name for name in spoilt if name not in needed)]:
        if name == "settings" and stage in ("report", "pairs") and "settings" not in spoilt:
            values[name] = right["results"] / "config.yaml"
        value = values[name]
        parts = [str(part) for part in (value if isinstance(value, tuple) else (value,))]
        line += parts if name in POSITIONAL else [f"--{name}", *parts]
    return line


def test_cases_cover_every_command():
    assert {stage for stage, _ in cases()} | WITHOUT_INPUTS == set(cli.COMMANDS)


@pytest.fixture
def complaint(inputs, tmp_path, capsys, monkeypatch):
    """Return complaint(stage, name, path), which runs the command with `path` for `name` and returns its error."""

    def complaint(stage: str, name: str, path: Path) -> None:
        monkeypatch.chdir(inputs[0])
        assert cli.main(arguments(stage, inputs, tmp_path, **{name: path})) == 1
        said = capsys.readouterr().err
        assert "Traceback" not in said
        assert str(path) in said[said.rindex("error: ") :] or (stage, name) in AFTER_OTHERS
        made = [path for path in (tmp_path / "made").rglob("*") if path.is_file() and path.name != ".lease.guard"]
        assert made == []

    return complaint


@pytest.mark.parametrize(("stage", "name"), cases())
def test_main_with_a_wrong_input_names_it(stage, name, complaint, tmp_path):
    complaint(stage, name, tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    complaint(stage, name, tmp_path / "empty")
    (tmp_path / "bytes.bin").write_bytes(bytes(range(256)))
    complaint(stage, name, tmp_path / "bytes.bin")


@pytest.mark.parametrize("out", [".", "work", "file", "file/x"])
def test_main_with_an_out_of_another_program_keeps_it(inputs, tmp_path, capsys, monkeypatch, out):
    """Check outputs that once removed the working folder or replaced it."""
    (tmp_path / "work" / ".git").mkdir(parents=True)
    (tmp_path / "work" / ".git" / "HEAD").write_text("ref: refs/heads/main")
    (tmp_path / "file").write_text("mine")
    monkeypatch.chdir(tmp_path / "work" if out == "." else tmp_path)
    before = sorted(tmp_path.rglob("*"))
    for stage in ("sample", "tracking-init", "teacher", "prompts"):
        if stage in ("sample", "tracking-init") and out == "file":
            continue  # they write files, and replace them
        line = arguments(stage, inputs, tmp_path) + (["--off"] if stage == "tracking-init" else [])
        line[line.index("--out") + 1] = out
        assert cli.main(line) == 1
        assert "Traceback" not in capsys.readouterr().err
    assert sorted(tmp_path.rglob("*")) == before
    assert (tmp_path / "file").read_text() == "mine"


def test_main_with_a_web_project_as_out_keeps_it(inputs, tmp_path, capsys):
    """Check a manifest.json of another program."""
    (tmp_path / "manifest.json").write_text('{"name": "site", "start_url": "/"}')
    (tmp_path / "index.html").write_text("mine")
    for stage in ("teacher", "prompts"):
        line = arguments(stage, inputs, tmp_path)
        line[line.index("--out") + 1] = str(tmp_path)
        assert cli.main(line) == 1
        assert f"{tmp_path}: exists and is not created by sid-core" in capsys.readouterr().err
    assert (tmp_path / "index.html").read_text() == "mine"


@pytest.mark.parametrize(
    ("stage", "spoilt", "message"),
    [
        ("plan-memory", {"size": "shapes", "gpus": 0}, "--gpus 0: expected 1 or more"),
        ("plan-memory", {"size": "shapes", "gpus": -2}, "--gpus -2: expected 1 or more"),
        ("plan-memory", {"size": "shapes", "kappa": -1}, "--kappa -1: expected more than 0"),
        ("distill", {"state": "config.yaml"}, "--state config.yaml: is a file or below one; expected the folder of"),
        ("distill", {"state": "config.yaml/x"}, "--state config.yaml/x: is a file or below one"),
        (
            "sample",
            {"generator": "/tmp"},
            "--generator /tmp: has no generator.json; expected results/EXPERIMENT/runs/NAME",
        ),
        ("sample", {"count": 0}, "--seed 0 -n 0: expected 1 or more images"),
        ("sample", {"seed": -1}, "--seed -1 -n 1: expected 1 or more images, and seeds from 0"),
        ("sample", {"teacher": "results"}, "--teacher results: has no tokenizer; expected a prepared teacher"),
        ("prompts", {"teacher": "results"}, "--teacher results: no prepared teacher; expected"),
        ("report", {"settings": "other.yaml"}, "--settings other.yaml: of experiment other, but --results"),
        ("pairs", {"settings": "other.yaml"}, "--settings other.yaml: of experiment other, but --results"),
    ],
)
def test_main_with_a_wrong_value_names_the_fix(inputs, tmp_path, capsys, monkeypatch, stage, spoilt, message):
    monkeypatch.chdir(inputs[0])
    Path("other.yaml").write_text(Path("config.yaml").read_text().replace("experiment: shapes", "experiment: other"))
    line = arguments(stage, inputs, tmp_path, **{name: value for name, value in spoilt.items() if name != "state"})
    if "state" in spoilt:
        line[line.index("--state") + 1] = spoilt["state"]
    assert cli.main(line) == 1
    said = capsys.readouterr().err
    assert message in said
    assert len(said.splitlines()) == 1


def test_main_with_an_empty_range_names_it(inputs, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(inputs[0])
    assert cli.main(arguments("generate", inputs, tmp_path, range=("5", "5"))) == 1
    assert "samples 5–4: expected a range inside the 2 captions" in capsys.readouterr().err

"""Test the command line: a user's error is one message and exit code 1, a defect keeps its traceback."""

import errno
import os
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from mirrored import make_settings
from PIL import Image
from safetensors import SafetensorError

from sid_core import cli
from sid_core.config import Prompts, PromptsSettings, dump
from sid_core.storage.files import write_manifest


@pytest.fixture
def settings(tmp_path):
    """Write a settings file of the prompts stage."""
    path = tmp_path / "settings.yaml"
    path.write_text(dump(PromptsSettings(prompts=Prompts(train=3, evaluation=2))))
    return path


def prompts(settings, out) -> int:
    return cli.main(["prompts", "--settings", str(settings), "--out", str(out)])


def test_main_of_a_stage_writes_its_output(settings, tmp_path):
    assert prompts(settings, tmp_path / "prompts") == 0
    assert len((tmp_path / "prompts" / "train.txt").read_text().splitlines()) == 3


@pytest.mark.parametrize("stage", cli.COMMANDS)
def test_main_with_help_describes_the_stage(stage, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main([stage, "--help"])
    assert ended.value.code == 0
    assert cli.COMMANDS[stage].help.split("(")[0].strip()[:20] in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("stage", cli.COMMANDS)
def test_main_of_a_stage_with_networks_multiplies_in_float32(stage, monkeypatch):
    """Check that TF32, CUDA's default for convolutions, is off; stages without networks import no torch, which takes seconds."""
    seen = {}

    def record(given) -> None:
        seen["tf32"] = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32

    command = cli.COMMANDS[stage]
    monkeypatch.setitem(cli.COMMANDS, stage, replace(command, run=record))
    required = [word for option in command.needs for word in arguments_of(option)]
    given = {"report": ["--all"], "compare": ["a", "b"], "vote": ["a", "b"], "votes": ["a"]}
    required += (given | {"plan-memory": ["--size", "sd15"]}).get(stage, [])
    required += {"export-benchmark": ["dpg"], "import-benchmark": ["dpg", "a"]}.get(stage, [])
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = True
    try:
        assert cli.main([stage, *required]) == 0
    finally:
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    assert seen["tf32"] == ((True, True) if stage in cli.WITHOUT_NETWORKS else (False, False))


def arguments_of(option: str) -> list[str]:
    """Return a required option with as many values as it takes."""
    count = cli.OPTIONS[option].get("nargs", 1)
    return [f"--{option}", *["1"] * (count if isinstance(count, int) else 1)]


def test_without_networks_lists_known_commands():
    """List the stages without networks: a new one has exact arithmetic unless it is named here."""
    assert {
        *("prompts", "evaluation-networks", "pairs", "report", "compare", "tracking-init", "track", "status", "push"),
        *("plan", "plan-memory", "doctor", "vote", "votes", "import-benchmark"),
    } == cli.WITHOUT_NETWORKS


def test_main_with_help_groups_every_command(capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(["--help"])
    said = capsys.readouterr().out
    assert ended.value.code == 0
    assert re.findall(r"^(\w[\w ]*):$", said, re.M) == ["options", *cli.GROUPS]
    assert list(cli.GROUPS) == ["Run", "Inspect", "Try", "Plan", "Share", "Internal stages"]
    assert all(f"\n  {name} " in said for name in cli.COMMANDS)
    assert max(map(len, said.splitlines())) <= 90


@pytest.mark.parametrize(("typed", "meant"), [("reprot", "report"), ("comapre", "compare"), ("extractors", None)])
def test_main_with_a_mistyped_command_names_the_nearest(capsys, typed, meant):
    with pytest.raises(SystemExit) as ended:
        cli.main([typed, "--results", "x"])
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert f"{typed}: no such command" in said
    assert (f"did you mean {meant}?" in said) if meant else ("did you mean" not in said)


def test_options_belong_to_a_command_each():
    used = {f"{name}.{one}" for name, command in cli.COMMANDS.items() for one in re.split(r"[ |?]+", command.arguments)}
    plain = {one.split(".")[1] for one in used}
    unused = [option for option in cli.OPTIONS if option not in (used if "." in option else plain | {"threads"})]
    assert unused == []


def test_main_with_a_wrong_value_prints_one_message(tmp_path):
    """Check a process of its own."""
    (tmp_path / "settings.yaml").write_text("prompts: {source: file, train: 3, evaluation: b.txt}\n")
    command = [sys.executable, "-m", "sid_core", "prompts", "--settings", "settings.yaml", "--out", "prompts"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr == ("error: settings.yaml: prompts: train=3: expected a caption file with source: file\n")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["settings.yaml"]


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device", "results/x.safetensors"),
        OSError(errno.EDQUOT, "Disk quota exceeded", "results/x.safetensors"),
        PermissionError(errno.EACCES, "Permission denied", "results/x.safetensors"),
    ],
)
def test_main_with_an_error_of_the_machine_names_the_file(settings, tmp_path, monkeypatch, capsys, error):
    monkeypatch.setattr("sid_core.data.prompts.prepare_prompts", lambda *_: (_ for _ in ()).throw(error))
    assert prompts(settings, tmp_path / "prompts") == 1
    message = capsys.readouterr().err
    assert message.startswith(f"error: results/x.safetensors: {error.strerror.lower()}; ")
    assert message.count("\n") == 1


@pytest.mark.parametrize(
    "error",
    [
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
        shutil.Error([("a", "b", "[Errno 28] No space left on device: 'a' -> 'b'")]),
    ],
)
def test_main_with_a_wrapped_full_disk_names_it(settings, tmp_path, monkeypatch, capsys, error):
    monkeypatch.setattr("sid_core.data.prompts.prepare_prompts", lambda *_: (_ for _ in ()).throw(error))
    assert prompts(settings, tmp_path / "prompts") == 1
    assert capsys.readouterr().err.startswith(f"error: {tmp_path}/prompts: no space left on device; ")


@pytest.mark.parametrize("error", [RuntimeError("a defect"), FileNotFoundError(errno.ENOENT, "No such file", "x")])
def test_main_with_a_defect_keeps_its_traceback(settings, tmp_path, monkeypatch, error):
    monkeypatch.setattr("sid_core.data.prompts.prepare_prompts", lambda *_: (_ for _ in ()).throw(error))
    with pytest.raises(type(error)):
        prompts(settings, tmp_path / "prompts")


def test_main_interrupted_anywhere_returns_130(settings, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sid_core.data.prompts.prepare_prompts", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    assert prompts(settings, tmp_path / "prompts") == 130
    assert "interrupted" in capsys.readouterr().err


def test_main_without_a_display_sets_the_agg_backend(settings, tmp_path, monkeypatch):
    monkeypatch.setenv("MPLBACKEND", "TkAgg")
    prompts(settings, tmp_path / "prompts")
    assert os.environ["MPLBACKEND"] == "Agg"


@pytest.mark.parametrize(("processes", "threads", "expected"), [(None, 1, "1"), ("2", 2, "1"), ("4", 2, "1")])
def test_main_with_threads_divides_them_among_the_ranks_of_a_node(processes, threads, expected):
    code = (
        "from sid_core import cli\n"
        "cli.COMMANDS['plan'] = cli.Command(lambda given: print(__import__('torch').get_num_threads()), 'x')\n"
        f"cli.main(['plan', '--threads', '{threads}'])"
    )
    environment = os.environ | {"OMP_NUM_THREADS": "2"} | ({"LOCAL_WORLD_SIZE": processes} if processes else {})
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.strip() == expected


# --- distill and sample --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def experiment(tiny_teacher, tmp_path_factory):
    """Make results/x with the tiny teacher, five prompts, and a run distilled by the command line."""
    folder = tmp_path_factory.mktemp("results") / "x"
    (folder / "runs" / "lsg-1.5").mkdir(parents=True)
    (folder / "teacher").symlink_to(tiny_teacher)
    (folder / "prompts.yaml").write_text(dump(PromptsSettings(prompts=Prompts(train=5, evaluation=1))))
    assert prompts(folder / "prompts.yaml", folder / "prompts") == 0
    (folder / "settings.yaml").write_text(dump(make_settings()))
    assert distill(folder) == 0
    return folder


def distill(folder) -> int:
    options = {
        "settings": folder / "settings.yaml",
        "teacher": folder / "teacher",
        "prompts": folder / "prompts" / "train.txt",
        "state": folder / "state" / "lsg-1.5",
        "tracking": folder / "state" / "tracking.json",
        "out": folder / "runs" / "lsg-1.5" / "generator",
    }
    return cli.main(["distill", *(text for name, path in options.items() for text in (f"--{name}", str(path)))])


def sample(folder, out, *more: str) -> int:
    generator = folder / "runs" / "lsg-1.5" / "generator"
    arguments = ["sample", "--generator", str(generator), "--prompt", "a red circle", "--out", str(out), *more]
    return cli.main(arguments)


def test_distill_writes_generator_log_and_grids(experiment):
    run = experiment / "runs" / "lsg-1.5"
    assert (run / "generator" / "manifest.json").is_file()
    assert len((run / "training.jsonl").read_text().splitlines()) == 4
    assert [p.name for p in sorted((run / "grids").iterdir())] == ["00000000.png", "00000008.png", "00000016.png"]
    with Image.open(run / "grids" / "00000016.png") as grid:
        assert grid.size == (4 * 128, 4 * 128)  # 16 tiny images, enlarged to be seen


def test_distill_with_changed_prompts_raises(experiment, capsys):
    path = experiment / "prompts" / "train.txt"
    before = path.read_text()
    path.write_text(before + "one more\n")
    assert distill(experiment) == 1
    assert "prompts/train.txt: differs from its recorded sha256" in capsys.readouterr().err
    path.write_text(before)


def test_distill_sets_deterministic_kernels(experiment, monkeypatch):
    from sid_core.training import precision, run

    asked = []
    monkeypatch.setattr(precision, "set_determinism", asked.append)
    monkeypatch.setattr(run, "distill", lambda *_: None)
    assert distill(experiment) == 0
    assert asked == [True]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_distill_interrupted_prints_it_and_returns_the_signal(experiment, monkeypatch, capsys, number):
    from sid_core.training import run

    def interrupted(*_):
        raise run.Interrupted(number)

    monkeypatch.setattr(run, "distill", interrupted)
    with pytest.raises(SystemExit) as ended:
        distill(experiment)
    assert ended.value.code == 128 + number
    assert capsys.readouterr().err == "error: lsg-1.5: interrupted; its state is saved, running again continues\n"


def test_sample_depends_on_the_seed_alone(experiment, tmp_path):
    for name, seed in (("a", 0), ("again", 0), ("b", 1)):
        assert sample(experiment, tmp_path / f"{name}.png", "--seed", str(seed)) == 0
    a, again, b = ((tmp_path / f"{name}.png").read_bytes() for name in ("a", "again", "b"))
    assert a == again
    assert a != b
    with Image.open(tmp_path / "a.png") as image:
        assert image.size == (128, 128)


def test_sample_of_a_run_folder_draws_the_same_image(experiment, tmp_path, capsys):
    assert sample(experiment, tmp_path / "a.png") == 0
    capsys.readouterr()
    run = experiment / "runs" / "lsg-1.5"
    arguments = ["--generator", str(run), "--prompt", "a red circle", "--out", str(tmp_path / "b.png")]
    assert cli.main(["sample", *arguments]) == 0
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    assert re.fullmatch(rf"{tmp_path}/b\.png: 128 x 128 pixels, seed 0, \d+ ms\n", capsys.readouterr().out)


def test_sample_of_several_images_names_each_by_its_seed(experiment, tmp_path, capsys, caplog):
    assert sample(experiment, tmp_path / "b.png", "--seed", "4") == 0
    with caplog.at_level("INFO"):
        assert sample(experiment, tmp_path / "a.png", "-n", "2", "--seed", "3") == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a-3.png", "a-4.png", "b.png"]
    assert (tmp_path / "a-4.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    assert caplog.messages[0] == "loading libraries"
    assert caplog.messages[-1] == f"sampling {tmp_path}/a-4.png, seed 4 (2 of 2)"
    last = capsys.readouterr().out.splitlines()[-1]
    assert re.fullmatch(rf"{tmp_path}/a-3\.png to .*a-4\.png: 128 x 128 pixels, seeds 3 to 4, \d+ ms an image", last)


def test_sample_to_a_missing_folder_raises(experiment, tmp_path, capsys):
    assert sample(experiment, tmp_path / "no" / "x.png") == 1
    assert f"--out {tmp_path}/no/x.png: no such folder {tmp_path}/no" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_sample_of_an_import_takes_its_own_teacher(experiment, tmp_path, capsys):
    """Find the teacher with the recorded hash among several."""
    results = tmp_path / "x"
    shutil.copytree(experiment / "runs", results / "runs")
    shutil.copytree(experiment / "teacher", results / "teachers" / "own")
    for other in ("teacher", "teachers/a"):
        shutil.copytree(experiment / "teacher", results / other)
        scheduler = results / other / "scheduler" / "scheduler_config.json"
        scheduler.write_text(scheduler.read_text().replace("0.012", "0.013"))
        write_manifest(results / other)
    assert sample(experiment, tmp_path / "a.png") == 0
    assert sample(results, tmp_path / "b.png") == 0
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    shutil.rmtree(results / "teachers" / "own")
    assert sample(results, tmp_path / "c.png") == 1
    assert f"--teacher: not given, and none in {results} is the one" in capsys.readouterr().err


def test_sample_with_a_missing_teacher_names_it(experiment, tmp_path, capsys):
    assert sample(experiment, tmp_path / "x.png", "--teacher", str(tmp_path / "nowhere")) == 1
    assert f"--teacher {tmp_path}/nowhere: no such folder" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())

"""Test whole runs: exact resume, alarms, checkpoints of other settings."""

import errno
import json
import multiprocessing
import os
import random
import signal
import threading
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from small_run import PROMPTS, interrupted, load_state, make_settings

from sid_core.errors import UserError
from sid_core.method.objectives.base import ScoreDistillation
from sid_core.models.generator import load_generator
from sid_core.storage.files import read_json, sha256_file, sidecar
from sid_core.storage.lease import lease
from sid_core.storage.states import saved_states
from sid_core.training import run
from sid_core.training.health import TrainingStopped
from sid_core.training.iteration import Trainer
from sid_core.training.precision import set_determinism
from sid_core.training.run import Interrupted, distill
from sid_core.training.state import StateWriter, remove_partial_writes

WEIGHTS = Path("unet") / "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def uninterrupted(tiny_teacher, tmp_path_factory):
    """Run the default settings without interruption."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    distill(make_settings(), tiny_teacher, PROMPTS, folder / "state", folder / "run" / "generator")
    return folder


def points(path):
    """Read logged points without their times."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in ("elapsed_s", "gpu_s", "images_per_s")} for line in lines]


def test_distill_writes_generator_log_and_grids(uninterrupted, tiny_teacher):
    generator, record = load_generator(uninterrupted / "run" / "generator", tiny_teacher)
    assert record["train_kimg"] == 0.08
    assert record["run"]["teacher"] == 1.5
    logged = points(uninterrupted / "run" / "training.jsonl")
    assert [p["nimg"] for p in logged] == list(range(8, 81, 8))
    assert len(saved_states(uninterrupted / "state")) == 2
    assert not (uninterrupted / "state" / "lease.json").exists()
    assert generator.prediction_type == "epsilon"


@pytest.mark.parametrize("stop_at", [1, 3, 7, 13, 19])
def test_distill_interrupted_anywhere_gives_equal_bits(uninterrupted, tiny_teacher, folders, monkeypatch, stop_at):
    """Send SIGTERM during iteration `stop_at`, and compare weights and log of the resumed run."""
    with interrupted(monkeypatch, stop_at - 1):
        distill(make_settings(), tiny_teacher, PROMPTS, folders.state, folders.out)
    assert not folders.out.exists()
    assert f"{stop_at:09d}" in saved_states(folders.state)[0].name
    distill(make_settings(), tiny_teacher, PROMPTS, folders.state, folders.out)
    assert sha256_file(folders.out / WEIGHTS) == sha256_file(uninterrupted / "run" / "generator" / WEIGHTS)
    assert points(folders.out.parent / "training.jsonl") == points(uninterrupted / "run" / "training.jsonl")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_distill_interrupted_on_a_gpu_gives_equal_bits(tiny_teacher, tmp_path, monkeypatch, precision):
    set_determinism(True)
    settings, whole, parts = make_settings(precision=precision), tmp_path / "whole", tmp_path / "parts"
    distill(settings, tiny_teacher, PROMPTS, whole / "state", whole / "generator")
    with interrupted(monkeypatch, 6):
        distill(settings, tiny_teacher, PROMPTS, parts / "state", parts / "generator")
    distill(settings, tiny_teacher, PROMPTS, parts / "state", parts / "generator")
    assert sha256_file(parts / "generator" / WEIGHTS) == sha256_file(whole / "generator" / WEIGHTS)
    set_determinism(False)


@pytest.fixture(scope="module")
def in_parts(tiny_teacher, tmp_path_factory):
    """Run the default settings in micro-batches of one."""
    folder = tmp_path_factory.mktemp("in_parts")
    distill(make_settings(micro_batch=1), tiny_teacher, PROMPTS, folder / "state", folder / "run" / "generator")
    return folder


@pytest.mark.parametrize("network", ["fake", "generator"])
@pytest.mark.parametrize("part", [0, 2])
def test_distill_interrupted_within_an_iteration_gives_equal_bits(
    in_parts, tiny_teacher, folders, monkeypatch, network, part
):
    """Stop a slow iteration: its first phase is saved, and the second follows after resume."""
    name, calls = f"{network}_backward", []
    inner = getattr(ScoreDistillation, name)

    def backward(*given):
        calls.append(name)
        if len(calls) == 5 * 4 + part + 1:  # iteration 5 in four micro-batches
            os.kill(os.getpid(), signal.SIGUSR1)
        return inner(*given)

    with monkeypatch.context() as patch:
        patch.setattr("sid_core.training.run.PATIENCE_S", -1.0)
        patch.setattr(ScoreDistillation, name, backward)
        with pytest.raises(Interrupted, match="SIGUSR1"):
            distill(make_settings(micro_batch=1), tiny_teacher, PROMPTS, folders.state, folders.out)
    newest = saved_states(folders.state)[0].name
    assert newest == ("state-000000005half1" if network == "generator" else "state-000000005")
    distill(make_settings(micro_batch=1), tiny_teacher, PROMPTS, folders.state, folders.out)
    assert sha256_file(folders.out / WEIGHTS) == sha256_file(in_parts / "run" / "generator" / WEIGHTS)
    assert points(folders.out.parent / "training.jsonl") == points(in_parts / "run" / "training.jsonl")


def child(teacher, folders, settings):
    try:
        distill(settings, teacher, PROMPTS, folders.state, folders.out)
    except Interrupted as error:
        os._exit(128 + error.signum)
    os._exit(0)


def test_distill_killed_at_random_gives_equal_bits(uninterrupted, tiny_teacher, folders):
    """Send SIGKILL and SIGTERM at random moments, saving at every iteration so that many kills hit a write.

    The processes are forked, so that a kill costs no imports.
    """
    settings, dice, codes = make_settings(state_every_nimg=4), random.Random(0), []
    fork = multiprocessing.get_context("fork")
    while 0 not in codes:
        assert len(codes) < 60, f"the run does not advance: {codes}"
        process = fork.Process(target=child, args=(tiny_teacher, folders, settings))
        process.start()
        process.join(dice.uniform(0.1, 0.6))
        if process.is_alive() and len(codes) < 12:
            os.kill(process.pid, dice.choice([signal.SIGKILL, signal.SIGTERM]))
        process.join()
        assert process.exitcode in (0, -signal.SIGKILL, -signal.SIGTERM, 128 + signal.SIGTERM)
        codes.append(process.exitcode)
    assert len(codes) > 3, codes
    assert sha256_file(folders.out / WEIGHTS) == sha256_file(uninterrupted / "run" / "generator" / WEIGHTS)
    assert points(folders.out.parent / "training.jsonl") == points(uninterrupted / "run" / "training.jsonl")


@pytest.fixture
def half_done(tiny_teacher, folders, monkeypatch):
    """Stop a run after iteration 10, with checkpoints at 9 (periodic) and 10 (signal)."""
    with interrupted(monkeypatch, 9):
        distill(make_settings(), tiny_teacher, PROMPTS, folders.state, folders.out)
    return folders


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (
            lambda file: file.write_bytes(file.read_bytes()[:-10]),
            "generator.safetensors: differs from its recorded sha256",
        ),
        (lambda file: file.unlink(), "generator.safetensors: missing"),
        (lambda file: sidecar(file).write_text("{"), "generator.json: not valid JSON"),
    ],
)
def test_distill_from_damaged_newest_checkpoint_falls_back_with_a_warning(
    half_done, uninterrupted, tiny_teacher, caplog, spoil, said
):
    newest = saved_states(half_done.state)[0]
    spoil(newest / "generator.safetensors")
    distill(make_settings(), tiny_teacher, PROMPTS, half_done.state, half_done.out)
    assert f"{newest.name}/{said}" in caplog.text
    assert "falling back" in caplog.text
    assert sha256_file(half_done.out / WEIGHTS) == sha256_file(uninterrupted / "run" / "generator" / WEIGHTS)


def test_quarantine_damaged_keeps_later_checkpoints(half_done, tiny_teacher, monkeypatch, caplog):
    """Check that a damaged checkpoint is not retained by KEEP_STATES in place of later ones."""
    newest = saved_states(half_done.state)[0]
    later = newest.rename(newest.with_name("state-000000019"))
    (later / "ema.safetensors").write_bytes(b"")
    inner = Trainer.step

    def step(self):
        if self.iteration == 15:
            os.kill(os.getpid(), signal.SIGTERM)
        return inner(self)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "step", step)
        patch.setattr(run, "KEEP_STATES", 1)
        with pytest.raises(Interrupted):
            distill(make_settings(), tiny_teacher, PROMPTS, half_done.state, half_done.out)
    assert [path.name for path in saved_states(half_done.state)] == ["state-000000016"]
    assert (half_done.state / "damaged").is_dir()
    assert f"{later}: damaged, renamed to damaged" in caplog.text


def test_distill_from_damaged_checkpoints_raises(half_done, tiny_teacher):
    for state in saved_states(half_done.state):
        (state / "ema.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match="all 2 checkpoints are damaged"):
        distill(make_settings(), tiny_teacher, PROMPTS, half_done.state, half_done.out)


@pytest.mark.parametrize(
    ("change", "prompts", "named"),
    [({"lr": 2e-4}, PROMPTS, r"distill\.lr \(0\.0001 -> 0\.0002\)"), ({}, PROMPTS[:3], "prompts")],
)
def test_distill_of_unfinished_run_with_other_settings_names_them(half_done, tiny_teacher, change, prompts, named):
    before = sorted(p.name for p in half_done.state.iterdir())
    with pytest.raises(UserError, match=f"unfinished run of other settings: {named}"):
        distill(make_settings(**change), tiny_teacher, prompts, half_done.state, half_done.out)
    assert sorted(p.name for p in half_done.state.iterdir()) == before


def test_distill_of_unfinished_run_from_before_a_setting_resumes_at_its_default(half_done, uninterrupted, tiny_teacher):
    path = half_done.state / "identity.json"
    identity = json.loads(path.read_text())
    del identity["run.step_noise"], identity["distill.step_noise"]
    path.write_text(json.dumps(identity))
    changed = make_settings(run={"num_steps": 2, "step_noise": "ddim"})
    with pytest.raises(UserError, match=r"run\.num_steps \(1 -> 2\), run\.step_noise \(fresh -> ddim\)"):
        distill(changed, tiny_teacher, PROMPTS, half_done.state, half_done.out)
    distill(make_settings(), tiny_teacher, PROMPTS, half_done.state, half_done.out)
    assert sha256_file(half_done.out / WEIGHTS) == sha256_file(uninterrupted / "run" / "generator" / WEIGHTS)


def test_distill_of_unfinished_run_with_fewer_images_raises(half_done, tiny_teacher):
    with pytest.raises(UserError, match="already seen 40 images"):
        distill(make_settings(train_kimg=0.02), tiny_teacher, PROMPTS, half_done.state, half_done.out)


def test_distill_with_frequent_checkpoints_gives_equal_bits(uninterrupted, tiny_teacher, folders, monkeypatch):
    written, write = [], StateWriter.write
    monkeypatch.setattr(
        StateWriter, "write", lambda self, trainer, _: written.append(trainer.nimg) or write(self, trainer, _)
    )
    monkeypatch.setattr(run, "STATE_EVERY_S", 1e-9)
    distill(make_settings(state_every_nimg=10**6), tiny_teacher, PROMPTS, folders.state, folders.out)
    assert written == list(range(4, 81, 4))
    assert sha256_file(folders.out / WEIGHTS) == sha256_file(uninterrupted / "run" / "generator" / WEIGHTS)


def test_distill_in_a_folder_with_other_entries_keeps_them(tiny_teacher, folders):
    """Check entries of a user in a folder of his own."""
    mine = [
        folders.state / name
        for name in ("state-of-the-art", "state-5", ".state-mine", "bestiary", ".best.of", "best.txt")
    ]
    for path in mine:
        path.mkdir(parents=True)
        (path / "notes.json").write_text("[]")
    assert saved_states(folders.state) == []
    for settings in (make_settings(train_kimg=0.016), make_settings(train_kimg=0.008)):  # the second starts over
        distill(settings, tiny_teacher, PROMPTS, folders.state, folders.out)
    assert all((path / "notes.json").is_file() for path in mine)


@pytest.mark.parametrize(
    "name",
    [
        "training.jsonl",
        "grids",
        "ended.json",
        "damaged",
        "state-000000005",
        "identity.json",
    ],
)
def test_check_owner_of_foreign_entries_raises(tiny_teacher, folders, name):
    folders.state.mkdir(parents=True)
    (folders.state / name).write_text('{"name": "mine"}')
    with pytest.raises(UserError, match=f"expected the folder of a run, got {name}"):
        distill(make_settings(), tiny_teacher, PROMPTS, folders.state, folders.out)
    assert [path.name for path in folders.state.iterdir()] == [name]
    assert (folders.state / name).read_text() == '{"name": "mine"}'


def test_distill_resumed_with_other_free_settings_gives_equal_bits(half_done, uninterrupted, tiny_teacher, monkeypatch):
    monkeypatch.setattr(run, "KEEP_STATES", 1)
    changed = make_settings(log_every_nimg=20, state_every_nimg=40)
    distill(changed, tiny_teacher, PROMPTS, half_done.state, half_done.out)
    assert sha256_file(half_done.out / WEIGHTS) == sha256_file(uninterrupted / "run" / "generator" / WEIGHTS)
    assert len(saved_states(half_done.state)) == 1


def test_distill_of_finished_run_restarts_or_extends_it(tiny_teacher, folders, tmp_path):
    distill(make_settings(train_kimg=0.04), tiny_teacher, PROMPTS, folders.state, folders.out)
    distill(make_settings(train_kimg=0.08), tiny_teacher, PROMPTS, folders.state, folders.out)  # continues
    assert [p["nimg"] for p in points(folders.state / "training.jsonl")] == list(range(8, 81, 8))
    distill(make_settings(train_kimg=0.02), tiny_teacher, PROMPTS, folders.state, folders.out)  # shorter: starts over
    assert [p["nimg"] for p in points(folders.out.parent / "training.jsonl")] == [8, 16, 20]
    distill(make_settings(lr=2e-4), tiny_teacher, PROMPTS, folders.state, folders.out)  # starts over
    fresh = tmp_path / "fresh" / "generator"
    distill(make_settings(lr=2e-4), tiny_teacher, PROMPTS, tmp_path / "fresh_state", fresh)
    assert sha256_file(folders.out / WEIGHTS) == sha256_file(fresh / WEIGHTS)


def test_distill_of_finished_run_with_other_code_trains_again(tiny_teacher, folders, monkeypatch):
    settings = make_settings(train_kimg=0.016)
    iterations = []
    inner = Trainer.step
    monkeypatch.setattr(Trainer, "step", lambda self: iterations.append(self.iteration) or inner(self))
    for code, trained in (("old", 4), ("old", 4), ("new", 8)):  # the second time it is only exported
        distill(settings, tiny_teacher, PROMPTS, folders.state, folders.out, code=code)
        assert len(iterations) == trained


def test_distill_of_unfinished_run_with_other_code_resumes_with_a_warning(half_done, tiny_teacher, caplog):
    distill(make_settings(), tiny_teacher, PROMPTS, half_done.state, half_done.out, code="new")
    assert "resumed with other training code" in caplog.text


def test_distill_extended_equals_a_long_run(uninterrupted, tiny_teacher, folders):
    distill(make_settings(train_kimg=0.04), tiny_teacher, PROMPTS, folders.state, folders.out)
    distill(make_settings(), tiny_teacher, PROMPTS, folders.state, folders.out)
    assert sha256_file(folders.out / WEIGHTS) == sha256_file(uninterrupted / "run" / "generator" / WEIGHTS)


@pytest.mark.parametrize(
    ("alarms", "named"),
    [
        ({"score_gap_max": 1e-9}, r"score_gap=.* beyond distill\.alarms\.score_gap_max"),
        ({"latent_std_min": 100.0}, "latent_std_min"),
        ({"latent_std_max": 1e-9}, "latent_std_max"),
        ({"generator_loss_max": 1e-9}, "generator_loss_max"),
    ],
)
def test_distill_beyond_an_alarm_stops_without_a_generator(tiny_teacher, folders, alarms, named):
    settings = make_settings(alarms=alarms | {"warmup_nimg": 20, "patience": 3})
    with pytest.raises(TrainingStopped, match=named) as stopped:
        distill(settings, tiny_teacher, PROMPTS, folders.state, folders.out)
    assert "at 40 images" in str(stopped.value)
    assert [p["nimg"] for p in points(folders.state / "training.jsonl")] == [
        8,
        16,
        24,
        32,
        40,
    ]  # 24, 32, 40 are checked
    assert not folders.out.exists()
    assert read_json(folders.state / "ended.json") == {"how": "aborted", "iteration": 10, "why": str(stopped.value)}


def test_alarm_watch_over_interruptions_continues_counting(tiny_teacher, folders, monkeypatch):
    """Check that a job requeued every few points does not train for ever; limits may have changed."""
    inner, stops = Trainer.step, [6, 8]

    def step(self):
        if stops and self.iteration == stops[0]:
            os.kill(os.getpid(), signal.SIGTERM)
            stops.pop(0)
        return inner(self)

    monkeypatch.setattr(Trainer, "step", step)
    settings = make_settings(alarms={"latent_std_max": 1e-9, "warmup_nimg": 20, "patience": 3})
    for limits in (make_settings(), settings):
        with pytest.raises(Interrupted):
            distill(limits, tiny_teacher, PROMPTS, folders.state, folders.out)
    with pytest.raises(TrainingStopped, match="3 points in a row, the last at 40 images"):  # 24, 32, 40 are judged
        distill(settings, tiny_teacher, PROMPTS, folders.state, folders.out)


def test_distill_with_a_held_lease_raises(tiny_teacher, folders):
    with lease(folders.state), pytest.raises(UserError, match=f"in use by process {os.getpid()}"):
        distill(make_settings(), tiny_teacher, PROMPTS, folders.state, folders.out)


def test_distill_draws_grids_at_start_intervals_and_end(tiny_teacher, folders):
    drawn = {}
    settings = make_settings(samples_every_nimg=32)

    def on_samples(nimg, latents):
        drawn[nimg] = latents
        (folders.state / "grids" / f"{nimg:08d}.png").write_bytes(b"")

    distill(settings, tiny_teacher, PROMPTS, folders.state, folders.out, on_samples)
    assert sorted(drawn) == [0, 32, 64, 80]
    assert drawn[0].shape == (16, 4, 8, 8)
    assert sorted(p.name for p in (folders.out.parent / "grids").iterdir()) == [f"{n:08d}.png" for n in sorted(drawn)]


# --- saving in the background ------------------------------------------------------------------------------------------


@pytest.fixture
def disk(monkeypatch):
    """Block writes of checkpoints until `set` is called."""
    free = threading.Event()

    def save(*given):
        assert free.wait(60)
        return save_file(*given)

    monkeypatch.setattr("sid_core.training.state.save_file", save)
    return free


def test_state_writer_with_a_slow_disk_lets_training_continue(make_trainer, tmp_path, disk):
    trainer = make_trainer()
    with StateWriter(tmp_path, keep=2) as writer:
        writer.write(trainer, {})
        before = trainer.trained["generator"].master.clone()
        trainer.step()  # after the copy was taken
        assert not saved_states(tmp_path)
        disk.set()
    saved = load_state(tmp_path)
    for name, view in trainer.layout.views(before).items():
        assert torch.equal(saved[f"generator/{name}"], view)


def test_state_writer_with_a_full_disk_raises(tiny_teacher, folders, monkeypatch):
    def save(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("sid_core.training.state.save_file", save)
    with pytest.raises(OSError, match="No space left"):
        distill(make_settings(), tiny_teacher, PROMPTS, folders.state, folders.out)
    assert not folders.out.exists()


def test_remove_partial_writes_after_kills_removes_all(half_done, uninterrupted, tiny_teacher):
    """Check checkpoints without a sidecar, partly written or partly removed."""
    newest, before = saved_states(half_done.state)
    (newest / "ema.json").unlink()
    begun, going = half_done.state / "state-000000011", half_done.state / ".state-000000006"
    (begun / ".ema.safetensors.abc").mkdir(parents=True)
    going.mkdir()
    remove_partial_writes(half_done.state)
    assert [path.name for path in half_done.state.glob("*state-*")] == [before.name]
    begun.mkdir()
    distill(make_settings(), tiny_teacher, PROMPTS, half_done.state, half_done.out)  # removes it as well
    assert not begun.exists()
    assert sha256_file(half_done.out / WEIGHTS) == sha256_file(uninterrupted / "run" / "generator" / WEIGHTS)


# --- settings that may change, and remedies ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "value", "said"), [("micro_batch", 2, "(4 -> 2)"), ("deterministic", False, "(True -> False)")]
)
def test_distill_resumed_with_other_rounding_settings_warns(half_done, tiny_teacher, caplog, key, value, said):
    distill(make_settings(**{key: value}), tiny_teacher, PROMPTS, half_done.state, half_done.out)
    assert f"distill.{key} {said}: the same draws, weights equal up to rounding only" in caplog.text


def test_distill_without_deterministic_kernel_names_the_setting(tiny_teacher, folders, monkeypatch):
    def refused(self):
        raise RuntimeError("put_ does not have a deterministic implementation, but you set …")

    monkeypatch.setattr(Trainer, "step", refused)
    with pytest.raises(UserError, match=r"put_ .*implementation; set distill\.deterministic: false\. Running again"):
        distill(make_settings(), tiny_teacher, PROMPTS, folders.state, folders.out)


def test_distill_without_checkpoint_accepts_other_settings(tiny_teacher, folders, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "step", out_of_memory)
        with pytest.raises(UserError, match="memory is full"):
            distill(make_settings(), tiny_teacher, PROMPTS, folders.state, folders.out)
    distill(make_settings(lr=2e-4), tiny_teacher, PROMPTS, folders.state, folders.out)


def out_of_memory(self):
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has …")


@pytest.mark.parametrize(
    ("distill_settings", "advice"),
    [
        (
            {},
            r"set distill\.micro_batch: 2 .*distill\.offload: all, or distill\.checkpointing: true .*precision: bfloat16 .*shard: all on several GPUs\. ",
        ),
        ({"micro_batch": 1, "precision": "bfloat16", "offload": "all"}, r"set distill\.checkpointing: true \(a third"),
        # the schema rejects 3 images of 14, and both of compile and checkpointing
        (
            {"batch": 14, "micro_batch": 7, "compile": True},
            r"set distill\.micro_batch: 2 .*distill\.checkpointing: true with distill\.compile: false \(a third",
        ),
    ],
)
def test_distill_out_of_memory_lists_remedies(tiny_teacher, folders, monkeypatch, distill_settings, advice):
    monkeypatch.setattr(Trainer, "step", out_of_memory)
    with pytest.raises(UserError, match=r"memory is full \(CUDA out of memory\); " + advice):
        distill(make_settings(**distill_settings), tiny_teacher, PROMPTS, folders.state, folders.out)


def test_checkpoint_consists_of_safetensors(uninterrupted):
    files = {name.split("/")[0] for name in load_state(uninterrupted / "state")}
    assert files == {"ema", "fake_score", "fake_score_second_moment", "generator", "generator_second_moment"}


# --- proxy evaluations ------------------------------------------------------------------------------------------------


def watch(values):
    """Make a substitute for proxy evaluations that returns `values` in turn and stores its inputs."""
    given, values = [], iter(values)

    def look(batches):
        given.append(torch.cat(list(batches)))
        return {"fid_proxy": next(values), "clip_proxy": 0.5}

    return look, given


def test_distill_with_proxy_samples_never_trains_on_them(tiny_teacher, folders, monkeypatch):
    look, given = watch([3.0, 2.0])
    settings = make_settings(proxy_samples=2, proxy_every_nimg=40)
    indices, inner = set(), Trainer._draw

    def draw(self, purpose, iteration, batch, dropout):
        drawn = inner(self, purpose, iteration, batch, dropout)
        indices.update(drawn.prompts.tolist() if purpose in ("fake", "generator") else [])
        return drawn

    monkeypatch.setattr(Trainer, "_draw", draw)
    distill(settings, tiny_teacher, PROMPTS, folders.state, folders.out, on_held_out=look)
    assert indices == {0, 1, 2}
    assert [samples.shape for samples in given] == [(2, 4, 8, 8)] * 2
    logged = points(folders.out.parent / "training.jsonl")
    assert {p["nimg"]: p["fid_proxy"] for p in logged if "fid_proxy" in p} == {40: 3.0, 80: 2.0}


def test_iterations_of_a_fraction_of_thousand_images_loses_no_image():
    assert run._iterations(make_settings(train_kimg=1.001, batch=1, micro_batch=1).distill) == 1001


def test_make_trainer_with_too_many_proxy_samples_raises(tiny_teacher, folders):
    with pytest.raises(UserError, match=r"proxy_samples=5: expected fewer than the 5 training captions"):
        distill(make_settings(proxy_samples=5), tiny_teacher, PROMPTS, folders.state, folders.out)

"""Run on 1, 2 and 4 ranks: equal draws, losses and decisions. Ranks are forked, which avoids imports."""

import json
import multiprocessing
import os
import signal
import socket
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from small_run import PROMPTS, load_state, make_settings

from sid_core.config import Adversarial, Lora, Real, RealUID, Teacher
from sid_core.errors import UserError
from sid_core.models import architectures
from sid_core.models.conditioning import PromptSet
from sid_core.models.encode_pairs import encode_pairs
from sid_core.models.teacher import prepare_teacher
from sid_core.storage.states import saved_states
from sid_core.training import dry_run, state
from sid_core.training.distributed import PeerLost, World
from sid_core.training.health import TrainingStopped
from sid_core.training.iteration import Trainer
from sid_core.training.randomness import draw, rng
from sid_core.training.run import Interrupted, distill
from sid_core.training.trained_network import TrainedNetwork

SIZE = {"batch": 8, "micro_batch": 2, "train_kimg": 0.064, "log_every_nimg": 8, "state_every_nimg": 24}
WEIGHTS = Path("generator") / "unet" / "diffusion_pytorch_model.safetensors"
CODES = {None: 0, TrainingStopped: 11, PeerLost: 12, Interrupted: 13, UserError: 14}


def member(rank, size, port, teacher, folder, settings, before, real_pairs=None):
    """Run one rank, as torchrun would start it."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size)}
    os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
    asked = PromptSet.__call__

    def ask(self, indices, dropped=None):
        with open(folder / f"prompts-{rank}.txt", "a") as log:
            log.write(json.dumps(indices.tolist()) + "\n")
        return asked(self, indices, dropped)

    PromptSet.__call__ = ask
    if before:
        before(rank)
    try:
        distill(settings, teacher, PROMPTS, folder / "state", folder / "generator", real_pairs=real_pairs)
    except tuple(kind for kind in CODES if kind) as error:
        (folder / f"error-{rank}.txt").write_text(str(error))
        os._exit(CODES[type(error)])
    os._exit(0)


@pytest.fixture
def run(tiny_teacher, tmp_path):
    """Return run(size, folder name), which returns exit codes; every rank calls `before(rank)` first."""

    def start(size, name="run", before=None, settings=None, real_pairs=None, teacher=tiny_teacher):
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        with socket.socket() as probe:
            probe.bind(("localhost", 0))
            port = probe.getsockname()[1]
        fork = multiprocessing.get_context("fork")
        given = (size, port, teacher, folder, settings or make_settings(**SIZE), before, real_pairs)
        processes = [fork.Process(target=member, args=(rank, *given)) for rank in range(size)]
        for process in processes:
            process.start()
        for process in processes:
            process.join(60)
            assert process.exitcode is not None, "a process is stuck"
        return SimpleNamespace(folder=folder, codes=[process.exitcode for process in processes])

    return start


def points(folder):
    lines = [json.loads(line) for line in (folder / "state" / "training.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in ("elapsed_s", "gpu_s", "images_per_s")} for line in lines]


def asked_of(folder, size):
    """Read the prompts of all ranks, in order of rank, phase by phase."""
    per_rank = []
    for rank in range(size):
        lines = [json.loads(line) for line in (folder / f"prompts-{rank}.txt").read_text().splitlines()]
        flat = [index for line in lines for index in line]
        share = 8 // size
        per_rank.append([flat[i : i + share] for i in range(0, len(flat), share)])
    return [[index for part in parts for index in part] for parts in zip(*per_rank, strict=True)]


def test_distill_on_any_world_size_gives_equal_results(run):
    one = run(1, "1").folder
    weights = load_file(one / WEIGHTS)
    for size in (2, 4):
        done = run(size, str(size))
        assert done.codes == [0] * size
        assert asked_of(done.folder, size) == asked_of(one, 1)
        first, *_ = both = list(zip(points(done.folder), points(one), strict=True))
        assert first[0] == pytest.approx(first[1], rel=3e-5)
        for a, b in both:  # Adam's early steps are signs: rounding grows
            assert a == pytest.approx(b, rel=1e-3, abs=1e-5)
        for name, tensor in load_file(done.folder / WEIGHTS).items():
            torch.testing.assert_close(tensor, weights[name], rtol=1e-2, atol=5e-4)
        assert [p.name for p in saved_states(done.folder / "state")] == [p.name for p in saved_states(one / "state")]


REAL = (
    {"adversarial": Adversarial(weight=0.5, start_nimg=40)},
    {"objective": "real_uid", "real_uid": RealUID(a=0.9, b=0.92)},
)


@pytest.mark.parametrize("objective", REAL)
def test_distill_with_real_images_on_two_ranks_gives_equal_results(run, tiny_teacher, tmp_path, objective):
    encode_pairs(Real(pairs=24), tmp_path / "pairs", tiny_teacher)
    settings = make_settings(run=objective, **SIZE)
    both = [run(size, str(size), settings=settings, real_pairs=tmp_path / "pairs") for size in (1, 2)]
    assert [done.codes for done in both] == [[0], [0, 0]]
    one, two = (points(done.folder) for done in both)
    assert one[0] == pytest.approx(two[0], rel=3e-5)
    for a, b in zip(one, two, strict=True):  # Adam's early steps are signs: rounding grows
        assert a == pytest.approx(b, rel=1e-2, abs=1e-3)


@pytest.mark.parametrize("shard", ["none", "optimizer"])
def test_distill_with_lora_on_two_ranks_gives_equal_results(run, shard):
    changes = {"run": {"lora": Lora(rank=2, lr_factor=10)}, "shard": shard, **SIZE}
    both = [run(size, str(size), settings=make_settings(**changes)) for size in (1, 2)]
    assert [done.codes for done in both] == [[0], [0, 0]]
    one, two = (points(done.folder) for done in both)
    assert one[0] == pytest.approx(two[0], rel=1e-4)
    for a, b in zip(one, two, strict=True):  # Adam's early steps are signs: rounding grows
        assert a == pytest.approx(b, rel=1e-2, abs=1e-3)


def test_distill_on_two_ranks_slices_the_draw_of_the_whole_batch(run):
    folder = run(2).folder
    expected = []
    for iteration in range(8):
        for half in ("fake", "generator"):
            d = draw(
                rng(0, iteration, half),
                batch=8,
                latent_shape=(4, 8, 8),
                num_prompts=len(PROMPTS),
                noises=1,
                draw_t=lambda stream: torch.randint(20, 980, (4,), generator=stream),
            )
            expected.append(d.prompts.tolist())
    assert asked_of(folder, 2) == expected


def test_overlapped_all_reduce_in_backward_starts_every_block(monkeypatch):
    """Check one of two ranks: all blocks start in order before backward ends, and are waited for after it."""
    events, cpu = [], torch.device("cpu")
    note = lambda self, vector: events.append(vector.data_ptr()) or (lambda: events.append("waited"))  # noqa: E731
    monkeypatch.setattr(World, "all_reduce_async_", note)
    monkeypatch.setattr(World, "all_reduce_", lambda *_: None)
    inner = TrainedNetwork.freeze
    monkeypatch.setattr(TrainedNetwork, "freeze", lambda self: events.append("backward ended") or inner(self))
    small, settings = architectures.from_name("small"), dry_run.make_settings(batch=4, micro_batch=1, nonfinite="skip")
    made = architectures.new_backbone(small, cpu), dry_run.RandomPrompts(small.text_shape, cpu), small.latent_shape
    trainer = Trainer(*made, dry_run.make_run(2.0), settings, World(0, 2), device=cpu)
    trainer.step()
    starts = [trainer.gradient.parameters[part].data_ptr() for _, part in trainer.layout.blocks]
    half = [*starts, "backward ended", *["waited"] * len(starts)]
    assert events == half + half
    assert sorted(name for names, _ in trainer.layout.blocks for name in names) == sorted(trainer.gradient.views)


def interrupt_second(rank):
    """Send SIGUSR1 to one rank in its fourth iteration."""
    inner = Trainer.step

    def step(self):
        if rank == 1 and self.iteration == 3:
            os.kill(os.getpid(), signal.SIGUSR1)
        return inner(self)

    Trainer.step = step


def test_distill_with_a_signal_to_one_rank_stops_all_and_resumes_on_any_world_size(run):
    whole, settings = run(2, "whole").folder, make_settings(**SIZE)
    for name, size in (("same", 2), ("fewer", 1)):
        stopped = run(2, name, before=interrupt_second, settings=settings)
        assert stopped.codes == [13, 13]
        assert "000000004" in saved_states(stopped.folder / "state")[0].name
        assert run(size, name).codes == [0] * size
    same, fewer, uninterrupted = (
        load_file(f / WEIGHTS) for f in (whole.parent / "same", whole.parent / "fewer", whole)
    )
    assert all(torch.equal(same[name], tensor) for name, tensor in uninterrupted.items())
    for name, tensor in uninterrupted.items():
        torch.testing.assert_close(fewer[name], tensor, rtol=1e-2, atol=5e-4)


def save_late(rank):
    """Delay the writes of the first rank and signal the second."""
    interrupt_second(rank)
    if rank == 0:
        inner = state.save_file
        state.save_file = lambda *given: time.sleep(1) or inner(*given)


def test_barrier_with_a_slow_rank_waits_for_its_checkpoint(run):
    """Check the barrier: torchrun kills the other ranks half a minute after the first exit."""
    stopped = run(2, before=save_late)
    assert stopped.codes == [13, 13]
    saved = max(path.stat().st_mtime_ns for path in saved_states(stopped.folder / "state")[0].iterdir())
    assert all((stopped.folder / f"error-{rank}.txt").stat().st_mtime_ns >= saved for rank in (0, 1))


def load_channels_last(rank):
    """Load a teacher with the memory format of 16 bits on a GPU."""
    inner = distill.__globals__["load_backbone"]
    distill.__globals__["load_backbone"] = lambda folder: inner(folder).to(memory_format=torch.channels_last)


def test_distill_with_shard_all_gives_equal_losses(run):
    logs = []
    for shard in ("none", "all"):
        done = run(2, shard, before=load_channels_last, settings=make_settings(**SIZE, shard=shard, checkpointing=True))
        assert done.codes == [0, 0]
        logs.append(points(done.folder))
    assert logs[0][0] == pytest.approx(logs[1][0], rel=1e-5)
    for a, b in zip(*logs, strict=True):  # Adam's early steps are signs: rounding grows
        assert a == pytest.approx(b, rel=1e-3, abs=1e-5)


@pytest.mark.parametrize("source", ["tiny_sd3_source", "tiny_sana_source", "tiny_flux_source"])
def test_distill_of_a_transformer_with_shard_all_on_two_ranks_equals_one(run, request, source, tmp_path):
    teacher = tmp_path / "teacher"
    prepare_teacher(Teacher(source="local", path=str(request.getfixturevalue(source))), teacher)
    unguided = dict.fromkeys(("fake_train", "fake_eval", "teacher"), 1.0)
    changes = {"train_kimg": 0.016, "t_init": 1000, "shard": "all", "checkpointing": True}
    settings = make_settings(unguided, **SIZE | changes)
    one, two = (run(size, str(size), settings=settings, teacher=teacher) for size in (1, 2))
    assert (one.codes, two.codes) == ([0], [0, 0])
    first, *_ = both = list(zip(points(two.folder), points(one.folder), strict=True))
    assert first[0] == pytest.approx(first[1], rel=1e-4)
    for a, b in both:  # Adam's early steps are signs: rounding grows
        assert a == pytest.approx(b, rel=1e-3, abs=1e-5)
    weights = Path("generator") / "transformer" / WEIGHTS.name
    expected = load_file(one.folder / weights)
    for name, tensor in load_file(two.folder / weights).items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-2, atol=5e-4)


@pytest.mark.parametrize("ida", [0.0, 0.03])
def test_distill_with_shard_optimizer_gives_equal_bits(run, ida):
    """Compare also after an interruption, resumed by a single rank."""
    apart = {"shard": "optimizer", "offload": "all"}
    whole, shared = (make_settings(run={"ida": ida}, **SIZE, **more) for more in ({}, apart))
    expected = run(2, "whole", settings=whole).folder
    assert run(2, "stopped", before=interrupt_second, settings=shared).codes == [13, 13]
    assert run(2, "stopped", settings=shared).codes == [0, 0]
    stopped = expected.parent / "stopped"
    for a, b in zip(points(stopped), points(expected), strict=True):
        assert a.pop("ema_drift") == pytest.approx(b.pop("ema_drift"), rel=1e-5)  # summed in another order
        assert a == b
    weights = load_file(expected / WEIGHTS)
    for name, tensor in load_file(stopped / WEIGHTS).items():
        assert torch.equal(tensor, weights[name])
    saved = [load_state(folder / "state") for folder in (expected, stopped)]
    assert saved[0].keys() == saved[1].keys()
    assert all(torch.equal(tensor, saved[1][name]) for name, tensor in saved[0].items())
    run(2, "fewer", before=interrupt_second, settings=shared)
    assert run(1, "fewer", settings=whole).codes == [0]
    assert points(expected.parent / "fewer")[-1] == pytest.approx(points(expected)[-1], rel=1e-3, abs=1e-5)


def poison_second(rank):
    inner = Trainer.step

    def step(self):
        if rank == 1 and self.iteration == 2:
            with torch.no_grad():
                next(self.teacher.network.parameters()).fill_(float("nan"))
        return inner(self)

    Trainer.step = step


def test_distill_with_a_nan_on_one_rank_stops_all_with_one_message(run):
    done = run(2, before=poison_second)
    assert done.codes == [11, 11]
    messages = {(done.folder / f"error-{rank}.txt").read_text() for rank in (0, 1)}
    assert len(messages) == 1
    assert "generator, iteration 2 (16 images)" in messages.pop()


def kill_second(rank):
    inner = Trainer.step

    def step(self):
        if rank == 1 and self.iteration == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return inner(self)

    Trainer.step = step


def test_distill_with_a_killed_rank_ends_the_others_soon(run):
    started = time.monotonic()
    done = run(2, before=kill_second)
    assert done.codes == [12, -signal.SIGKILL]
    assert "another process of this run ended" in (done.folder / "error-0.txt").read_text()
    assert time.monotonic() - started < 60


def test_distill_of_ranks_with_different_settings_raises(run, monkeypatch):
    def other_seed(rank):
        if rank == 1:
            inner = distill.__globals__["_identity"]
            distill.__globals__["_identity"] = lambda *given: inner(*given) | {"run.seed": 1}

    assert run(2, before=other_seed).codes == [14, 14]


@pytest.mark.parametrize(
    ("size", "rank", "batch", "micro_batch", "expected"),
    [
        (1, 0, 8, 4, [(0, 4), (4, 8)]),
        (2, 1, 8, 2, [(4, 6), (6, 8)]),
        (4, 3, 8, 4, [(6, 8)]),  # fewer rows than a micro-batch: one slice
    ],
)
def test_micro_batches_of_a_rank_gives_its_rows(size, rank, batch, micro_batch, expected):
    assert [(rows.start, rows.stop) for rows in World(rank, size).micro_batches(batch, micro_batch)] == expected


@pytest.mark.parametrize(("size", "micro_batch"), [(3, 1), (2, 3)])
def test_micro_batches_of_an_indivisible_batch_raises(size, micro_batch):
    with pytest.raises(UserError, match=r"distill\.batch=8.*expected a multiple"):
        World(0, size).micro_batches(8, micro_batch)


@pytest.mark.parametrize(
    "changes",
    [
        {"objective": "dmd", "fake_updates": 2},
        {"objective": "diff_instruct"},
        {"num_steps": 3, "steps_objective": "mixture"},
    ],
    ids=["dmd", "diff_instruct", "mixture"],
)
def test_distill_of_every_objective_on_two_ranks_equals_one(run, changes):
    settings = make_settings(run=changes, **SIZE | {"train_kimg": 0.032})
    one, two = (run(size, str(size), settings=settings) for size in (1, 2))
    assert two.codes == [0, 0]
    weights = load_file(one.folder / WEIGHTS)
    for a, b in zip(points(two.folder), points(one.folder), strict=True):
        assert a.keys() == b.keys()
        measured = {key: value for key, value in b.items() if value is not None}  # null: a step without an iteration
        assert {key: a[key] for key in measured} == pytest.approx(measured, rel=1e-3, abs=1e-5)
    for name, tensor in load_file(two.folder / WEIGHTS).items():
        torch.testing.assert_close(tensor, weights[name], rtol=1e-2, atol=5e-4)

"""Test 16-bit arithmetic: gradients near float32's, small updates, overflow and the loss scale."""

import os

import pytest
import torch

from sid_core.training.precision import FIRST_SCALE, GROWTH_INTERVAL, UpdateGuard, set_determinism
from sid_core.training.state import StateWriter, load_newest_state
from sid_core.training.trained_network import TrainedNetwork

CPU = torch.device("cpu")


def shake(trainer):
    """Make the scores differ: while they are equal, the generator's gradient is rounding error."""
    torch.manual_seed(0)
    for student in (trainer.trained["fake_score"],):
        student.master += 0.05 * torch.randn_like(student.master)
        student.refresh()


def gradients(trainer, monkeypatch):
    """Return metrics, and the gradients of both phases before any update."""
    found = {}

    def keep(student, gradient, loss, lr, iteration):
        half = "fake" if student is trainer.trained["fake_score"] else "generator"
        found[half] = gradient.parameters / student.guard.scale
        return torch.zeros(())

    shake(trainer)
    with monkeypatch.context() as patch:
        patch.setattr(TrainedNetwork, "update", keep)
        return trainer.step(), found


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
@pytest.mark.parametrize("micro_batch", [8, 2])
def test_step_in_16_bits_gives_gradients_near_float32(make_trainer, monkeypatch, precision, micro_batch):
    size = {"batch": 8, "micro_batch": micro_batch}
    metrics, exact = gradients(make_trainer(**size), monkeypatch)
    metrics_16, found = gradients(make_trainer(precision=precision, **size), monkeypatch)
    for half in ("fake", "generator"):
        assert found[half].dtype == torch.float32
        assert torch.cosine_similarity(exact[half], found[half], dim=0) > 0.99, half
        assert found[half].norm().item() == pytest.approx(exact[half].norm().item(), rel=0.05)
    for name in ("fake_loss", "teacher_residual", "score_gap", "latent_std"):
        assert metrics_16[name].item() == pytest.approx(metrics[name].item(), rel=0.05), name


def test_set_determinism_is_strict_and_an_iteration_runs(make_trainer, monkeypatch):
    """Check strict mode: otherwise attention's backward warns and is not deterministic."""
    with monkeypatch.context() as patch:
        patch.setattr(torch.cuda, "is_available", lambda: True)
        patch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
        try:
            set_determinism(True)
            assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
            assert torch.get_deterministic_debug_mode() == 2
            assert torch.backends.cudnn.deterministic
            patch.undo()
            make_trainer().step()
        finally:
            patch.setattr(torch.cuda, "is_available", lambda: True)
            set_determinism(False)
    assert torch.get_deterministic_debug_mode() == 0
    assert not torch.backends.cudnn.deterministic


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_step_in_16_bits_refreshes_the_copies(make_trainer, precision):
    trainer = make_trainer(precision=precision)
    dtype = getattr(torch, precision)
    for _ in range(2):
        trainer.step()
    for student in trainer.trained.values():
        assert student.master.dtype == torch.float32
        for name, view in trainer.layout.views(student.master).items():
            parameter = student.backbone.network.get_parameter(name)
            assert parameter.dtype == dtype
            assert torch.equal(parameter, view.to(dtype))
            assert parameter.grad is None
    assert {p.dtype for p in trainer.teacher.network.parameters()} == {dtype}
    assert {p.dtype for p in trainer.ema.network.parameters()} == {torch.float32}


def test_step_below_16_bit_resolution_accumulates_updates(make_trainer):
    """Check that lr 1e-6 changes float32 weights of size 0.1, though half an ulp of bfloat16 is 2e-4."""
    trainer = make_trainer(precision="bfloat16", lr=1e-6)
    before = trainer.trained["generator"].master.clone()
    for _ in range(3):
        trainer.step()
    moved = (trainer.trained["generator"].master - before).abs()
    assert 0 < moved.max() < 1e-5
    assert (moved > 0).float().mean() > 0.5


def test_step_in_tf32_on_a_cpu_equals_float32(make_trainer):
    plain, tf32 = make_trainer(), make_trainer(precision="tf32")
    for trainer in (plain, tf32):
        trainer.step()
    assert torch.equal(plain.ema_weights, tf32.ema_weights)


# --- the guard ---------------------------------------------------------------------------------------------------------


def should_skip(guard, loss=1.0, norm=1.0, iteration=0):
    return guard.should_skip(torch.tensor(loss), torch.tensor(norm), iteration).item()


def test_update_guard_at_overflow_halves_the_scale():
    guard = UpdateGuard(CPU, "float16", limit=1)
    assert guard.scale == FIRST_SCALE
    assert should_skip(guard, norm=float("inf")) == 1
    assert guard.scale == FIRST_SCALE / 2
    assert guard.skipped == 1
    assert guard.stopped() is None
    assert should_skip(guard) == 0


def test_update_guard_after_many_finite_updates_doubles_the_scale():
    guard = UpdateGuard(CPU, "float16", limit=1)
    for _ in range(GROWTH_INTERVAL):
        should_skip(guard)
    assert guard.scale == 2 * FIRST_SCALE


def test_update_guard_of_nonfinite_loss_counts_a_fault():
    guard = UpdateGuard(CPU, "float16", limit=2)
    should_skip(guard, loss=float("nan"), norm=float("nan"), iteration=3)
    assert guard.stopped() is None
    should_skip(guard, loss=float("nan"), norm=float("nan"), iteration=4)
    should_skip(guard, iteration=5)  # read late: the run was over at 4
    assert guard.stopped()[0] == 4
    assert guard.scale == FIRST_SCALE


def test_update_guard_at_the_smallest_scale_counts_overflow():
    guard = UpdateGuard(CPU, "float16", limit=1)
    for iteration in range(100):
        should_skip(guard, norm=float("inf"), iteration=iteration)
    assert guard.scale == 1
    assert guard.stopped()[0] == 8  # 2^8 was halved 8 times before


def test_update_guard_after_a_finite_update_resets_the_count():
    guard = UpdateGuard(CPU, "float32", limit=2)
    for norm in (float("nan"), 1.0, float("nan"), 1.0):
        should_skip(guard, norm=norm)
    assert guard.stopped() is None
    assert guard.skipped == 2


def test_update_guard_restored_continues(make_trainer):
    guard, other = UpdateGuard(CPU, "float16", limit=5), UpdateGuard(CPU, "float16", limit=5)
    for _ in range(3):
        should_skip(guard, norm=float("inf"))
    other.restore(guard.saved())
    assert other.saved() == guard.saved()
    assert other.scale == FIRST_SCALE / 8


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_load_newest_state_in_16_bits_continues_with_equal_bits(make_trainer, tmp_path, precision):
    def make():
        return make_trainer(precision=precision)

    whole, first, second = make(), make(), make()
    for _ in range(4):
        whole.step()
    for _ in range(2):
        first.step()
    with StateWriter(tmp_path, keep=1) as writer:
        writer.write(first, {})
    assert load_newest_state(tmp_path, second) == {}
    for _ in range(2):
        second.step()
    assert torch.equal(whole.ema_weights, second.ema_weights)
    for one, other in zip(whole.trained.values(), second.trained.values(), strict=True):
        assert torch.equal(one.master, other.master)
        assert one.guard.saved() == other.guard.saved()

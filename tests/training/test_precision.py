"""16-bit arithmetic: gradients point where float32's do, small updates are not lost, overflow lowers the scale."""

import os

import pytest
import torch

from sid_core.models.teacher import load_backbone
from sid_core.training.precision import FIRST_SCALE, GROWTH_INTERVAL, UpdateGuard, set_determinism, set_memory_format
from sid_core.training.state import StateWriter, load_newest_state
from sid_core.training.trained_network import TrainedNetwork

CPU = torch.device("cpu")


def shake(trainer):
    """Tell the scores apart: while they are equal, the generator's gradient is rounding alone."""
    torch.manual_seed(0)
    for student in (trainer.trained["fake_score"],):
        student.master += 0.05 * torch.randn_like(student.master)
        student.refresh()


def gradients(trainer, monkeypatch):
    """Metrics, and the gradients of both halves before any update."""
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
def test_gradients_point_where_float32s_do(make_trainer, monkeypatch, precision, micro_batch):
    size = {"batch": 8, "micro_batch": micro_batch}
    metrics, exact = gradients(make_trainer(**size), monkeypatch)
    metrics_16, found = gradients(make_trainer(precision=precision, **size), monkeypatch)
    for half in ("fake", "generator"):
        assert found[half].dtype == torch.float32
        assert torch.cosine_similarity(exact[half], found[half], dim=0) > 0.99, half
        assert found[half].norm().item() == pytest.approx(exact[half].norm().item(), rel=0.05)
    for name in ("fake_loss", "teacher_residual", "score_gap", "latent_std"):
        assert metrics_16[name].item() == pytest.approx(metrics[name].item(), rel=0.05), name


def test_only_16_bit_weights_of_a_gpu_are_channels_last(tiny_teacher):
    for kind, precision in (
        ("cuda", "bfloat16"),
        ("cuda", "float16"),
        ("cuda", "float32"),
        ("cuda", "tf32"),
        ("cpu", "bfloat16"),
    ):
        unet = load_backbone(tiny_teacher).network
        set_memory_format(unet, precision, torch.device(kind))
        last = unet.conv_in.weight.is_contiguous(memory_format=torch.channels_last)
        assert last == (kind == "cuda" and precision in ("bfloat16", "float16"))


def test_deterministic_kernels_are_asked_for_and_an_iteration_has_them(make_trainer, monkeypatch):
    """Strictly: else attention's backward would not use its own, and warn."""
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
def test_networks_compute_on_refreshed_16_bit_copies(make_trainer, precision):
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


def test_updates_below_16_bit_resolution_add_up(make_trainer):
    """lr 1e-6 moves no bfloat16 weight of size 0.1 (half an ulp is 2e-4), but it moves the float32 ones."""
    trainer = make_trainer(precision="bfloat16", lr=1e-6)
    before = trainer.trained["generator"].master.clone()
    for _ in range(3):
        trainer.step()
    moved = (trainer.trained["generator"].master - before).abs()
    assert 0 < moved.max() < 1e-5
    assert (moved > 0).float().mean() > 0.5


def test_tf32_is_float32_on_a_cpu(make_trainer):
    plain, tf32 = make_trainer(), make_trainer(precision="tf32")
    for trainer in (plain, tf32):
        trainer.step()
    assert torch.equal(plain.ema_weights, tf32.ema_weights)


# --- the guard ---------------------------------------------------------------------------------------------------------


def judge(guard, loss=1.0, norm=1.0, iteration=0):
    return guard.should_skip(torch.tensor(loss), torch.tensor(norm), iteration).item()


def test_overflow_in_float16_halves_the_scale_and_is_no_fault():
    guard = UpdateGuard(CPU, "float16", limit=1)
    assert guard.scale == FIRST_SCALE
    assert judge(guard, norm=float("inf")) == 1
    assert guard.scale == FIRST_SCALE / 2
    assert guard.skipped == 1
    assert guard.stopped() is None
    assert judge(guard) == 0


def test_the_scale_grows_after_many_good_updates():
    guard = UpdateGuard(CPU, "float16", limit=1)
    for _ in range(GROWTH_INTERVAL):
        judge(guard)
    assert guard.scale == 2 * FIRST_SCALE


def test_what_no_scale_can_mend_is_a_fault():
    guard = UpdateGuard(CPU, "float16", limit=2)
    judge(guard, loss=float("nan"), norm=float("nan"), iteration=3)
    assert guard.stopped() is None
    judge(guard, loss=float("nan"), norm=float("nan"), iteration=4)
    judge(guard, iteration=5)  # read late: the run was over at 4
    assert guard.stopped()[0] == 4
    assert guard.scale == FIRST_SCALE


def test_overflow_at_the_smallest_scale_is_a_fault():
    guard = UpdateGuard(CPU, "float16", limit=1)
    for iteration in range(100):
        judge(guard, norm=float("inf"), iteration=iteration)
    assert guard.scale == 1
    assert guard.stopped()[0] == 8  # 2^8 was halved 8 times before


def test_good_updates_end_a_row_of_faults():
    guard = UpdateGuard(CPU, "float32", limit=2)
    for norm in (float("nan"), 1.0, float("nan"), 1.0):
        judge(guard, norm=norm)
    assert guard.stopped() is None
    assert guard.skipped == 2


def test_a_restored_guard_goes_on(make_trainer):
    guard, other = UpdateGuard(CPU, "float16", limit=5), UpdateGuard(CPU, "float16", limit=5)
    for _ in range(3):
        judge(guard, norm=float("inf"))
    other.restore(guard.saved())
    assert other.saved() == guard.saved()
    assert other.scale == FIRST_SCALE / 8


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_a_restored_run_goes_on_with_the_same_bits(make_trainer, tmp_path, precision):
    def make():
        return make_trainer(precision=precision, adam_beta1=0.5)

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

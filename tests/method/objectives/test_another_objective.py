"""Train with DMD, an objective in one file outside of the package, after one registration."""

import json
import signal

import pytest
import torch
from dmd import DMD
from small_run import PROMPTS, make_settings, make_trainer

from sid_core.errors import UserError
from sid_core.method import OBJECTIVES, generator_loss
from sid_core.storage.states import saved_states
from sid_core.training.run import Interrupted, distill


@pytest.fixture
def objective(monkeypatch):
    monkeypatch.setitem(OBJECTIVES, "dmd", DMD)
    return {"objective": "dmd", "fake_train": 1.0, "fake_eval": 1.0, "teacher": 1.75}


def test_distill_with_another_objective_logs_and_resumes_with_equal_bits(objective, tiny_teacher, tmp_path):
    settings = make_settings(run=objective, fake_updates=2)
    distill(settings, tiny_teacher, PROMPTS, tmp_path / "whole", tmp_path / "a" / "generator")

    def stop(nimg, latents):
        if nimg == 40:
            signal.raise_signal(signal.SIGTERM)

    with pytest.raises(Interrupted):
        distill(settings, tiny_teacher, PROMPTS, tmp_path / "cut", tmp_path / "b" / "generator", on_samples=stop)
    assert saved_states(tmp_path / "cut")
    distill(settings, tiny_teacher, PROMPTS, tmp_path / "cut", tmp_path / "b" / "generator")
    record = json.loads((tmp_path / "a" / "generator" / "generator.json").read_text())
    assert record["run"]["objective"] == "dmd"
    weights = [next((tmp_path / name).rglob("*.safetensors")).read_bytes() for name in "ab"]
    assert weights[0] == weights[1]
    point = json.loads((tmp_path / "whole" / "training.jsonl").read_text().splitlines()[-1])
    assert {"fake_loss", "fake_grad_norm", "generator_loss", "score_gap"} <= point.keys()


def test_step_of_two_fake_updates_draws_from_separate_streams(tiny_teacher, monkeypatch):
    trainer, seen = make_trainer(tiny_teacher, fake_updates=2), []
    inner = trainer._draw
    monkeypatch.setattr(trainer, "_draw", lambda purpose, *rest: seen.append(purpose) or inner(purpose, *rest))
    trainer.step()
    assert seen == ["fake", "fake 1", "generator"]
    assert [trained.optimizer.steps.item() for trained in trainer.trained.values()] == [2, 1]


@pytest.mark.parametrize("alpha", [0.5, 1.0, 1.2])
def test_generator_loss_of_sid_with_constant_scores_has_the_gradient_of_dmd(alpha):
    x_g, f_teacher, f_fake = torch.randn(3, 4, 2, 8, 8, generator=torch.Generator().manual_seed(0)).unbind()
    losses = (
        lambda x: generator_loss(x, f_teacher, f_fake, alpha),
        lambda x: DMD(None, 625).generator_loss(x, f_teacher, f_fake, None, None),
    )
    sid, dmd = (torch.autograd.grad(loss(leaf), leaf)[0] for loss in losses for leaf in [x_g.clone().requires_grad_()])
    weight = (x_g - f_teacher).abs().mean(dim=(1, 2, 3), keepdim=True)
    torch.testing.assert_close(dmd, (f_fake - f_teacher) / weight / len(x_g))
    torch.testing.assert_close(sid, dmd, rtol=1e-6, atol=1e-6)


def test_make_objective_of_unknown_name_lists_the_known(tiny_teacher):
    with pytest.raises(UserError, match="objective=rectified: expected sid"):
        make_trainer(tiny_teacher, run={"objective": "rectified"})

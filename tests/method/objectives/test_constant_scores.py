"""Test the objectives that take both scores as constants: DMD and Diff-Instruct."""

import json
import signal

import pytest
import torch
from small_run import PROMPTS, make_settings, make_trainer

from sid_core.errors import UserError
from sid_core.method import OBJECTIVES, Guidance, Steps, VPSchedule, generator_loss
from sid_core.storage.states import saved_states
from sid_core.training.run import Interrupted, distill

LONG = {"strategy": "long", "fake_train": 1.0, "fake_eval": 1.0, "teacher": 1.75}
SCHEDULE = VPSchedule(torch.linspace(0.999, 0.01, 1000))


@pytest.fixture
def scores():
    return torch.randn(3, 4, 2, 8, 8, generator=torch.Generator().manual_seed(0)).unbind()


def gradient(loss, x_g):
    leaf = x_g.clone().requires_grad_()
    return torch.autograd.grad(loss(leaf), leaf)[0]


@pytest.mark.parametrize("alpha", [0.5, 1.0, 1.2])
def test_generator_loss_of_sid_with_constant_scores_has_the_gradient_of_dmd(scores, alpha):
    x_g, f_teacher, f_fake = scores
    dmd = OBJECTIVES["dmd"](None, Steps(625))
    found = gradient(lambda x: dmd.generator_loss(x, f_teacher, f_fake, None, SCHEDULE), x_g)
    weight = (x_g - f_teacher).abs().mean(dim=(1, 2, 3), keepdim=True)
    torch.testing.assert_close(found, (f_fake - f_teacher) / weight / len(x_g))
    sid = gradient(lambda x: generator_loss(x, f_teacher, f_fake, alpha), x_g)
    torch.testing.assert_close(sid, found, rtol=1e-6, atol=1e-6)


def test_generator_loss_of_diff_instruct_has_the_published_gradient(scores):
    x_g, f_teacher, f_fake = scores
    t, objective = torch.tensor([20, 300, 625, 979]), OBJECTIVES["diff_instruct"](None, Steps(625))
    found = gradient(lambda x: objective.generator_loss(x, f_teacher, f_fake, t, SCHEDULE), x_g)
    abar = torch.linspace(0.999, 0.01, 1000).double()[t].view(-1, 1, 1, 1)
    expected = (abar * (1 - abar)).sqrt() * (f_fake - f_teacher) / len(x_g)
    torch.testing.assert_close(found, expected.float(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("objective", ["dmd", "diff_instruct"])
def test_step_with_constant_scores_moves_samples_along_the_difference_of_scores(objective, tiny_teacher, monkeypatch):
    """Compare the gradient that reaches x_g within an iteration with the formula, from the networks' own estimates."""
    trainer, seen = make_trainer(tiny_teacher, run=LONG | {"objective": objective}), {}
    inner = trainer.objective.generator_loss

    def record(x_g, f_teacher, f_fake, t, schedule):
        x_g.register_hook(lambda found: seen.update(found=found))
        assert not any(score.requires_grad for score in (f_teacher, f_fake))
        seen.update(x_g=x_g.detach(), f_teacher=f_teacher, f_fake=f_fake, t=t)
        return inner(x_g, f_teacher, f_fake, t, schedule)

    monkeypatch.setattr(trainer.objective, "generator_loss", record)
    trainer.step()
    d, schedule = seen["f_teacher"] - seen["f_fake"], trainer.teacher.schedule
    weight = {
        "dmd": 1 / (seen["x_g"] - seen["f_teacher"]).abs().mean(dim=(1, 2, 3), keepdim=True),
        "diff_instruct": schedule.alpha(seen["t"]) * schedule.sigma(seen["t"]),
    }[objective]
    torch.testing.assert_close(seen["found"], -weight * d / len(d), rtol=1e-5, atol=1e-7)


MIXTURE = {"num_steps": 3, "steps_objective": "mixture", "step_noise": "ddim"}


@pytest.mark.parametrize(
    ("changes", "passes"),
    [({"objective": "dmd", "ida": 0.03}, 14), ({"objective": "diff_instruct"}, 14), (MIXTURE, 20)],
)
def test_distill_interrupted_and_resumed_gives_equal_bits(changes, passes, tiny_teacher, tmp_path):
    settings = make_settings(run=LONG | changes | {"fake_updates": 2})
    distill(settings, tiny_teacher, PROMPTS, tmp_path / "whole", tmp_path / "a" / "generator")

    def stop(nimg, latents):
        if nimg == 40:
            signal.raise_signal(signal.SIGTERM)

    with pytest.raises(Interrupted):
        distill(settings, tiny_teacher, PROMPTS, tmp_path / "cut", tmp_path / "b" / "generator", on_samples=stop)
    assert saved_states(tmp_path / "cut")
    distill(settings, tiny_teacher, PROMPTS, tmp_path / "cut", tmp_path / "b" / "generator")
    record = json.loads((tmp_path / "a" / "generator" / "generator.json").read_text())
    assert record["run"].items() >= changes.items()
    assert record["network_passes"] == 80 * passes  # images, passes with two updates of the fake score
    assert record["train_s"] > record["train_gpu_s"] == 0  # of a CPU
    weights = [next((tmp_path / name).rglob("*.safetensors")).read_bytes() for name in "ab"]
    assert weights[0] == weights[1]
    points = [
        [json.loads(line) for line in (tmp_path / name / "training.jsonl").read_text().splitlines()]
        for name in ("whole", "cut")
    ]
    last = points[0][-1]
    assert {"fake_loss", "fake_grad_norm", "generator_loss", "score_gap"} <= last.keys()
    assert (last["network_passes"], last["elapsed_s"]) == (record["network_passes"], record["train_s"])
    losses = [[{k: v for k, v in point.items() if "loss" in k} for point in series] for series in points]
    assert losses[0] == losses[1]


def test_step_of_two_fake_updates_draws_from_separate_streams(tiny_teacher, monkeypatch):
    trainer, seen = make_trainer(tiny_teacher, run={"fake_updates": 2}), []
    inner = trainer._draw
    monkeypatch.setattr(trainer, "_draw", lambda purpose, *rest: seen.append(purpose) or inner(purpose, *rest))
    trainer.step()
    assert seen == ["fake", "fake 1", "generator"]
    assert [trained.optimizer.steps.item() for trained in trainer.trained.values()] == [2, 1]


@pytest.mark.parametrize(
    ("objective", "scales", "updates", "steps", "passes"),
    [
        ("sid", (1.5, 1.5, 1.5), 1, (), 18),
        ("sid", (0, 0, 1), 1, (), 11),
        ("dmd", (1, 1, 1.75), 1, (), 10),
        ("dmd", (1, 1, 1.75), 5, (), 26),
        ("sid", (1.5, 1.5, 1.5), 2, (), 25),
        ("sid", (1.5, 1.5, 1.5), 1, (4, "fresh", "last"), 30),
        ("sid", (1.5, 1.5, 1.5), 1, (4, "fresh", "mixture"), 21),  # 2.5 evaluations, of which one has a backward
    ],
)
def test_network_passes_count_branches_and_backward(objective, scales, updates, steps, passes):
    made = OBJECTIVES[objective](Guidance(*scales), Steps(625, *steps), fake_updates=updates)
    assert made.network_passes() == passes


def test_make_objective_of_unknown_name_lists_the_known(tiny_teacher):
    with pytest.raises(UserError, match="objective=rectified: expected sid or dmd or diff_instruct"):
        make_trainer(tiny_teacher, run={"objective": "rectified"})

"""Compare the trainer's iteration with the plain one: gradients to 1e-5, and Adam's steps."""

import pytest
import torch
from plain import Plain

from sid_core.training.trained_network import TrainedNetwork

# whole batch and micro-batches; with and without guidance; another alpha
CASES = [
    ({}, {}),
    ({}, {"micro_batch": 2}),
    ({}, {"checkpointing": True}),
    ({"fake_train": 1.0, "fake_eval": 1.0, "teacher": 3.0}, {}),
    ({"alpha": 1.2}, {"micro_batch": 1}),
]


@pytest.mark.parametrize(("run", "distill"), CASES)
def test_step_gives_the_gradients_of_the_plain_iteration(make_trainer, monkeypatch, run, distill):
    trainer = make_trainer(run=run, **distill)
    trainer.prompt_dropout = 0.3
    fake, found, inner = trainer.trained["fake_score"], {}, TrainedNetwork.update
    torch.manual_seed(0)
    fake.master += 0.1 * torch.randn_like(fake.master)  # make the scores differ

    def update(student, gradient, *given):
        half = "fake" if student is fake else "generator"
        found[half] = torch.cat([view.flatten() for view in gradient.views.values()])
        if half == "fake":  # the generator's half starts from the same fake score in both
            for p, q in zip(student.backbone.parameters(), plain.fake.parameters(), strict=True):
                p.copy_(q)
            return torch.zeros(())
        return inner(student, gradient, *given)

    plain = Plain(trainer)
    expected = plain.step()
    monkeypatch.setattr(TrainedNetwork, "update", torch.no_grad()(update))
    trainer.step()
    for half in ("fake", "generator"):
        assert (found[half] - expected[half]).norm() < 1e-5 * expected[half].norm(), half
    after = torch.cat([p.flatten() for p in plain.generator.network.parameters()])
    ours = torch.cat([p.flatten() for p in trainer.generator.network.parameters()])
    # Adam's first step is a sign: where a gradient is rounding alone the two may differ
    assert ((after - ours).abs() < 1e-6).float().mean() > 0.98

"""Test one iteration: changed weights, draws and the size of updates."""

import copy

import pytest
import torch
from torch.optim.swa_utils import AveragedModel

from sid_core.training import iteration, trained_network
from sid_core.training.health import TrainingStopped
from sid_core.training.randomness import draw, rng
from sid_core.training.trained_network import TrainedNetwork


def weights(denoiser):
    return torch.cat([p.detach().flatten() for p in denoiser.network.parameters()]).clone()


def test_step_from_the_teacher_changes_only_trained_networks(make_trainer):
    trainer = make_trainer()
    start = weights(trainer.teacher)
    assert all(torch.equal(start, weights(n)) for n in (trainer.fake_score, trainer.generator, trainer.ema))
    trainer.step()
    assert torch.equal(start, weights(trainer.teacher))
    assert not torch.equal(start, weights(trainer.fake_score))
    assert not torch.equal(start, weights(trainer.generator))


def test_update_ema_copies_first_and_its_half_life_grows(make_trainer, monkeypatch):
    monkeypatch.setattr(iteration, "EMA_RAMP", 1)
    trainer = make_trainer(ema_halflife_nimg=1e9, lr=1e-2)
    trainer.step()
    assert torch.equal(weights(trainer.ema), weights(trainer.generator))
    before = weights(trainer.ema)
    trainer.step()
    # 4 images seen before the second iteration, which has 4: a half-life
    torch.testing.assert_close(weights(trainer.ema), (before + weights(trainer.generator)) / 2)


def test_update_ema_equals_averaged_model_of_torch(make_trainer, monkeypatch):
    monkeypatch.setattr(iteration, "EMA_RAMP", 1e9)
    trainer = make_trainer(ema_halflife_nimg=8)  # no ramp: beta is constant, but for the copying first update
    trainer.step()
    beta = 0.5 ** (4 / 8)
    reference = AveragedModel(trainer.generator, avg_fn=lambda e, p, _: beta * e + (1 - beta) * p)
    reference.update_parameters(trainer.generator)  # its first update copies
    for _ in range(3):
        trainer.step()
        reference.update_parameters(trainer.generator)
    torch.testing.assert_close(weights(trainer.ema), weights(reference.module))


@pytest.mark.parametrize("more", [{}, {"precision": "bfloat16", "offload": "all"}])
def test_step_with_ida_moves_the_fake_score_towards_the_generator(make_trainer, monkeypatch, more):
    plain, aligned = make_trainer(**more), make_trainer(run={"ida": 0.03}, **more)
    before = {}
    inner = TrainedNetwork.align
    monkeypatch.setattr(
        TrainedNetwork,
        "align",
        lambda self, other, r: before.update(psi=self.master.double()) or inner(self, other, r),
    )
    for trainer in (plain, aligned):
        trainer.step()
    psi, theta = (aligned.trained[name].master for name in ("fake_score", "generator"))
    assert torch.equal(theta, plain.trained["generator"].master)
    assert torch.equal(before["psi"].float(), plain.trained["fake_score"].master)
    expected = 0.97 * before["psi"] + 0.03 * theta.double()
    torch.testing.assert_close(psi.double(), expected, rtol=1e-6, atol=1e-9)
    assert not torch.equal(psi, plain.trained["fake_score"].master)
    computed = aligned.layout.views(psi)
    for name, parameter in aligned.fake_score.network.named_parameters():
        assert torch.equal(parameter, computed[name].to(parameter.dtype))


def test_step_without_ida_gives_equal_bits(make_trainer, monkeypatch):
    trainers = make_trainer(), make_trainer(run={"ida": 0.0})
    monkeypatch.setattr(TrainedNetwork, "align", None)
    for trainer in (*trainers, *trainers):
        trainer.step()
    assert all(torch.equal(*(trainer.trained[name].master for trainer in trainers)) for name in trainers[0].trained)


@pytest.mark.parametrize("micro_batch", [1, 2])
def test_step_in_micro_batches_gives_the_gradient_of_the_batch(make_trainer, micro_batch, monkeypatch):
    def gradients(trainer):
        """Return gradients of both phases before any update: Adam's first step is a sign, which amplifies rounding."""
        found = {}

        def keep(student, gradient, loss, lr, iteration):
            found[next(name for name, trained in trainer.trained.items() if trained is student)] = (
                gradient.parameters.clone()
            )
            return torch.zeros(())

        torch.manual_seed(0)
        with torch.no_grad():  # as long as the two scores are equal, the generator's gradient is rounding alone
            for p in trainer.fake_score.parameters():
                p += 0.1 * torch.randn_like(p)
        monkeypatch.setattr(TrainedNetwork, "update", keep)
        return trainer.step(), found

    (metrics_a, a), (metrics_b, b) = gradients(make_trainer()), gradients(make_trainer(micro_batch=micro_batch))
    for half in ("fake_score", "generator"):
        assert (a[half] - b[half]).norm() < 1e-5 * a[half].norm()
    for name in ("fake_loss", "generator_loss", "teacher_residual", "fake_residual", "score_gap", "latent_std"):
        assert metrics_a[name].item() == pytest.approx(metrics_b[name].item(), rel=1e-5), name


def test_step_of_equal_seeds_gives_equal_bits(make_trainer):
    one, two, other = make_trainer(), make_trainer(), make_trainer(run={"seed": 1})
    for trainer in (one, two, other):
        trainer.step()
        trainer.step()
    assert torch.equal(weights(one.ema), weights(two.ema))
    assert not torch.equal(weights(one.ema), weights(other.ema))


def test_step_applies_adam_to_the_accumulated_gradient(make_trainer):
    """Check the first step: with beta1 = 0 it is lr * g / (|g| + eps sqrt(1 - beta2)...): lr * sign(g) for gradients well above eps."""
    trainer = make_trainer(lr=1e-3)
    before = weights(trainer.generator)
    trainer.step()
    moved = (weights(trainer.generator) - before).abs()
    assert moved.max().item() == pytest.approx(1e-3, rel=1e-3)
    assert moved.median().item() == pytest.approx(1e-3, rel=1e-3)


def test_learning_rate_of_both_networks_decays_linearly(make_trainer):
    trainer = make_trainer(lr=1e-4, lr_final=2e-5, fake_lr=3e-4)
    rates = []
    for _ in range(20):
        trainer.step()
        rates.append([student.optimizer.lr for student in trainer.trained.values()])
    assert rates[0] == pytest.approx([3e-4, 1e-4])
    assert rates[10] == pytest.approx([3e-4 * 0.6, 1e-4 * 0.6])


@pytest.mark.parametrize(
    ("scales", "dropped"),
    [
        ((1, 1, 3), False),
        ((1.5, 1.5, 1.5), True),
        ((1, 1.5, 1), True),
        ((0.5, 1, 1), True),
        ((1, 1, 1), False),
        ((0, 0, 1), False),
        ((-1, -1, 1), True),
    ],
)
def test_step_with_guidance_drops_prompts_of_the_fake_phase(make_trainer, scales, dropped):
    run = dict(zip(("fake_train", "fake_eval", "teacher"), scales, strict=True))
    trainer = make_trainer(run=run, batch=16, micro_batch=16)
    trainer.prompt_dropout = 0.9
    seen = []
    inner = trainer.prompts
    recorder = lambda indices, drop=None: seen.append(drop) or inner(indices, drop)  # noqa: E731
    recorder.empty = inner.empty
    recorder_type = type(
        "Recorder", (), {"__call__": staticmethod(recorder), "__len__": lambda self: len(inner), "empty": inner.empty}
    )
    trainer.prompts = recorder_type()
    trainer.step()
    fake, generator = seen
    assert (fake is not None and fake.any().item()) == dropped
    assert generator is None


def levels(batch):
    return lambda stream: torch.randint(20, 980, (batch,), generator=stream)


def test_draw_depends_only_on_seed_iteration_and_phase():
    def make(*key):
        return draw(rng(*key), batch=6, latent_shape=(2, 3, 3), num_prompts=50, noises=2, draw_t=levels(6), dropout=0.5)

    a, b = make(0, 3, "fake"), make(0, 3, "fake")
    assert torch.equal(a.noises, b.noises)
    assert torch.equal(a.t, b.t)
    others = [make(1, 3, "fake"), make(0, 4, "fake"), make(0, 3, "generator")]
    assert not any(torch.equal(a.eps, other.eps) for other in others)
    part = a[2:4]
    assert torch.equal(part.noises, a.noises[:, 2:4])
    assert part.t.tolist() == a.t[2:4].tolist()


def test_draw_covers_the_range_of_t_with_normal_noise():
    d = draw(
        rng(0, 0, "fake"),
        batch=200_000,
        latent_shape=(1, 1, 1),
        num_prompts=3,
        noises=1,
        draw_t=levels(200_000),
        dropout=0.1,
    )
    assert (d.t.min().item(), d.t.max().item()) == (20, 979)
    assert d.t.double().mean().item() == pytest.approx(499.5, abs=3)
    assert d.dropped.double().mean().item() == pytest.approx(0.1, abs=0.003)
    assert d.eps.std().item() == pytest.approx(1, abs=0.01)
    assert d.prompts.unique().tolist() == [0, 1, 2]


# --- non-finite numbers ----------------------------------------------------------------------------------------------


def poison(denoiser):
    with torch.no_grad():
        next(denoiser.network.parameters()).fill_(float("nan"))


@pytest.mark.parametrize("network", ["fake_score", "teacher"])
def test_step_with_nan_stops_and_names_network_and_iteration(make_trainer, network):
    trainer = make_trainer()
    trainer.step()
    poison(getattr(trainer, network))
    name = {"fake_score": "fake score", "teacher": "generator"}[network]
    with pytest.raises(TrainingStopped, match=rf"{name}, iteration 1 \(4 images\).*nonfinite: skip"):
        trainer.step()


def test_step_with_skip_keeps_weights_and_raises_at_the_limit(make_trainer, monkeypatch):
    monkeypatch.setattr(trained_network, "NONFINITE_LIMIT", 3)
    trainer = make_trainer(nonfinite="skip")
    poison(trainer.teacher)  # only the generator's phase uses it
    before = weights(trainer.generator)
    trainer.step()
    trainer.step()
    assert torch.equal(before, weights(trainer.generator))
    assert trainer.skipped == 2
    with pytest.raises(TrainingStopped, match="3 non-finite updates in a row"):
        trainer.step()


def test_grid_latents_use_the_ema_and_constant_noise(make_trainer):
    trainer = make_trainer()
    first = trainer.grid_latents(4)
    assert torch.equal(first, trainer.grid_latents(4))
    before = copy.deepcopy(trainer.ema.network.state_dict())
    for _ in range(3):
        trainer.step()
    assert not torch.equal(first, trainer.grid_latents(4))
    trainer.ema.network.load_state_dict(before)
    assert torch.equal(first, trainer.grid_latents(4))


# --- several evaluations ---------------------------------------------------------------------------------------------

MIXTURE = {"num_steps": 4, "steps_objective": "mixture"}


def test_step_of_a_mixture_trains_each_evaluation_equally_often(make_trainer):
    trainer = make_trainer(run=MIXTURE)
    walked = []
    for trainer.iteration in range(4000):
        walked.append(trainer._walked())
    counts = torch.bincount(torch.tensor(walked), minlength=5)[1:]
    assert ((counts - 1000).abs() < 5 * (4000 * 0.25 * 0.75) ** 0.5).all()
    other = make_trainer(run=MIXTURE | {"seed": 1})
    assert [other._walked() for other.iteration in range(30)] != walked[:30]


def test_step_of_a_mixture_shares_the_evaluation_among_phases_and_micro_batches(make_trainer, monkeypatch):
    trainer = make_trainer(run=MIXTURE | {"fake_updates": 2}, micro_batch=2)
    seen, inner = [], trainer._inputs

    def record(*given):
        batch = inner(*given)
        seen.append(batch.walked)
        return batch

    monkeypatch.setattr(trainer, "_inputs", record)
    for _ in range(3):
        expected = trainer._walked()
        metrics = trainer.step()
        assert seen == [expected] * 6
        assert torch.equal(metrics[f"generator_loss_k{expected}"], metrics["generator_loss"])
        seen.clear()


def test_step_of_one_evaluation_is_the_same_for_any_objective_of_steps(make_trainer):
    one, mixture = (make_trainer(run={"steps_objective": how}) for how in ("last", "mixture"))
    for _ in range(2):
        one.step(), mixture.step()
    assert torch.equal(one.ema_weights, mixture.ema_weights)

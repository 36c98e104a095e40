"""Train with real images: draws, exact resume, processes, refusals, alarms."""

import json
import signal

import pytest
import torch
from small_run import PROMPTS, make_settings

from sid_core.config import Adversarial, Real, RealUID
from sid_core.errors import UserError
from sid_core.models.backbones import StableDiffusion
from sid_core.models.encode_pairs import encode_pairs
from sid_core.storage.states import saved_states
from sid_core.training.health import AlarmWatch, TrainingStopped
from sid_core.training.run import Interrupted, distill, make_trainer

GAN = {"adversarial": Adversarial(weight=0.5, start_nimg=40)}
UID = {"objective": "real_uid", "real_uid": RealUID(a=0.9, b=0.92)}


@pytest.fixture(scope="session")
def pairs(tiny_teacher, tmp_path_factory):
    out = tmp_path_factory.mktemp("results") / "real-pairs"
    encode_pairs(Real(pairs=24), out, tiny_teacher)
    return out


def points(folder):
    lines = [json.loads(line) for line in (folder / "state" / "training.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in ("elapsed_s", "images_per_s")} for line in lines]


def trainer_of(teacher, pairs=None, run=GAN, **distill):
    return make_trainer(make_settings(run=run, **distill), teacher, PROMPTS, real_pairs=pairs)


def recorded(trainer, monkeypatch):
    """Record what the phases are given."""
    seen, inner = [], trainer._inputs

    def inputs(part, phase, *rest):
        seen.append((phase, part, inner(part, phase, *rest)))
        return seen[-1][2]

    monkeypatch.setattr(trainer, "_inputs", inputs)
    trainer.step()
    return seen


def test_step_with_real_images_draws_pairs_in_the_fake_phase_alone(tiny_teacher, pairs, monkeypatch):
    trainer = trainer_of(tiny_teacher, pairs, GAN | {"fake_updates": 2})
    trainer.prompt_dropout = 0.9
    first, second, generator = recorded(trainer, monkeypatch)
    assert generator[2].real is None
    assert not torch.equal(first[1].real, second[1].real)
    for _, part, batch in (first, second):
        assert torch.equal(batch.real, trainer.real.latents[part.real])
        expected = trainer.real._prompts(part.real, part.dropped)
        assert torch.equal(batch.real_cond.tokens, expected.tokens)


def test_step_with_real_images_keeps_all_other_draws(tiny_teacher, pairs, monkeypatch):
    plain = make_trainer(make_settings(), tiny_teacher, PROMPTS)
    for ours, others in zip(
        recorded(trainer_of(tiny_teacher, pairs), monkeypatch), recorded(plain, monkeypatch), strict=True
    ):
        for key in ("prompts", "dropped", "noises", "eps", "t"):
            assert torch.equal(getattr(ours[1], key), getattr(others[1], key))


def test_step_before_the_start_changes_the_fake_score_alone(tiny_teacher, pairs):
    trainer, plain = trainer_of(tiny_teacher, pairs), make_trainer(make_settings(), tiny_teacher, PROMPTS)
    metrics, without = trainer.step(), plain.step()
    assert {"logit_gap", "discriminator_accuracy", "discriminator_loss"} == metrics.keys() - without.keys()
    assert metrics["fake_loss"] == without["fake_loss"]
    assert not torch.equal(trainer.trained["fake_score"].master, plain.trained["fake_score"].master)


@pytest.mark.parametrize("micro_batch", [1, 2])
@pytest.mark.parametrize("objective", [GAN | {"adversarial": Adversarial(weight=0.5, start_nimg=0)}, UID])
def test_step_in_micro_batches_gives_the_metrics_of_the_batch(tiny_teacher, pairs, objective, micro_batch):
    a = trainer_of(tiny_teacher, pairs, objective).step()
    b = trainer_of(tiny_teacher, pairs, objective, micro_batch=micro_batch).step()
    for name in a.keys() - {"generator_loss", "generator_grad_norm", "score_gap"}:  # after an update by rounded signs
        assert a[name].item() == pytest.approx(b[name].item(), rel=2e-3, abs=1e-5), name


@pytest.mark.parametrize(("objective", "passes"), [(GAN, 19.5), (UID, 24)])
def test_distill_with_real_images_interrupted_and_resumed_gives_equal_bits(
    objective, passes, tiny_teacher, pairs, tmp_path
):
    settings = make_settings(run=objective)

    def train(name, stop=None):
        given = (settings, tiny_teacher, PROMPTS, tmp_path / name / "state", tmp_path / name / "generator")
        distill(*given, on_samples=stop, real_pairs=pairs)

    def stop(nimg, latents):
        if nimg == 40:
            signal.raise_signal(signal.SIGTERM)

    train("whole")
    with pytest.raises(Interrupted):
        train("cut", stop)
    assert saved_states(tmp_path / "cut" / "state")
    train("cut")
    weights = [next((tmp_path / name / "generator").rglob("*.safetensors")).read_bytes() for name in ("whole", "cut")]
    assert weights[0] == weights[1]
    assert points(tmp_path / "whole") == points(tmp_path / "cut")
    record = json.loads((tmp_path / "whole" / "generator" / "generator.json").read_text())
    assert record["network_passes"] == 80 * passes
    assert record["uses_real_images"]
    assert record["trained_from"]["real_pairs"]


def test_distill_with_a_late_gan_starts_at_its_image(tiny_teacher, pairs, tmp_path):
    """Compare with a run whose GAN starts never: the samples' metrics differ from the update after image 40 on."""
    logs = []
    for name, start in (("late", 40), ("never", 79)):
        run = {"adversarial": Adversarial(weight=50.0, start_nimg=start)}
        settings = make_settings(run=run, log_every_nimg=4)
        distill(settings, tiny_teacher, PROMPTS, tmp_path / name / "state", tmp_path / name / "g", real_pairs=pairs)
        logs.append({point["nimg"]: point for point in points(tmp_path / name)})
    late, never = logs
    assert all(late[nimg] == never[nimg] for nimg in range(4, 44, 4))
    assert late[44]["generator_grad_norm"] != never[44]["generator_grad_norm"]


def test_make_trainer_without_real_images_names_the_remedy(tiny_teacher, tmp_path):
    with pytest.raises(UserError, match=r"uses 0 real images, expected at least distill\.batch=4"):
        trainer_of(tiny_teacher)
    encode_pairs(Real(pairs=3), tmp_path / "few", tiny_teacher)
    with pytest.raises(UserError, match=r"uses 3 real images, expected at least distill\.batch=4"):
        trainer_of(tiny_teacher, tmp_path / "few")


def test_make_trainer_of_a_family_without_discriminator_names_it(tiny_teacher, pairs, monkeypatch):
    monkeypatch.delattr(StableDiffusion, "check_discriminator")
    with pytest.raises(
        UserError, match="adversarial: expected a teacher whose family has a discriminator, got StableD"
    ):
        trainer_of(tiny_teacher, pairs)


def test_distill_resumed_with_other_real_images_raises(tiny_teacher, pairs, tmp_path):
    settings = make_settings(run=GAN)

    def stop(nimg, latents):
        if nimg == 40:
            signal.raise_signal(signal.SIGTERM)

    given = (settings, tiny_teacher, PROMPTS, tmp_path / "state", tmp_path / "generator")
    with pytest.raises(Interrupted):
        distill(*given, on_samples=stop, real_pairs=pairs)
    encode_pairs(Real(pairs=20), tmp_path / "others", tiny_teacher)
    with pytest.raises(UserError, match="unfinished run of other settings: real_pairs"):
        distill(*given, real_pairs=tmp_path / "others")


def test_alarm_watch_checks_the_discriminator_after_its_start():
    alarms = make_settings(alarms={"patience": 2}).distill.alarms
    healthy = {"score_gap": 0.1, "latent_std": 1.0, "generator_loss": 1.0}
    watch = AlarmWatch(alarms, adversarial_nimg=100)
    for nimg in (20, 40, 60, 80, 100):
        watch.check(healthy | {"nimg": nimg, "discriminator_accuracy": 0.97})
    with pytest.raises(TrainingStopped, match=r"discriminator_accuracy=0\.97 .*=0\.95 at 2 points.*lower adversarial"):
        watch.check(healthy | {"nimg": 120, "discriminator_accuracy": 0.97})
    for nimg in (100, 120, 140):
        AlarmWatch(alarms, 0).check(healthy | {"nimg": nimg})

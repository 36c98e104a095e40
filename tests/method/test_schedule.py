"""Compare the schedule with that of diffusers."""

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler

from sid_core.errors import UserError
from sid_core.models.scheduler import noise_schedule

SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000}
ALL_T = torch.arange(1000)


@pytest.mark.parametrize(
    "config",
    [
        SD,
        {**SD, "beta_schedule": "linear"},
        {"beta_schedule": "squaredcos_cap_v2"},
        {"trained_betas": [0.1, 0.2, 0.3]},
        {**SD, "rescale_betas_zero_snr": True, "prediction_type": "v_prediction"},
    ],
)
def test_noise_schedule_of_any_betas_equals_diffusers(config):
    ours, theirs = noise_schedule(config), DDPMScheduler(**config, clip_sample=False)
    t = torch.arange(len(ours))
    torch.testing.assert_close(ours.alpha(t).flatten() ** 2, theirs.alphas_cumprod, rtol=1e-5, atol=1e-7)
    x0, eps = torch.randn(2, len(ours), 4, 2, 2)
    torch.testing.assert_close(ours.add_noise(x0, eps, t), theirs.add_noise(x0, eps, t), rtol=1e-5, atol=1e-5)


def test_schedule_at_t_625_gives_the_published_constants():
    schedule = noise_schedule(SD)
    t = torch.tensor([625])
    assert schedule.alpha(t).item() ** 2 == pytest.approx(0.1378, abs=5e-5)
    assert schedule.sigma(t).item() == pytest.approx(0.9286, abs=5e-5)
    # x_g = (sigma z - sigma eps) / alpha = 2.5017 (z - eps)
    assert (schedule.sigma(t) / schedule.alpha(t)).item() == pytest.approx(2.5017, abs=5e-5)


def test_schedule_at_every_t_preserves_variance():
    schedule = noise_schedule(SD)
    torch.testing.assert_close(schedule.alpha(ALL_T) ** 2 + schedule.sigma(ALL_T) ** 2, torch.ones(1000, 1, 1, 1))
    torch.testing.assert_close(
        schedule.fake_weight(ALL_T), schedule.alpha(ALL_T) ** 2 / schedule.sigma(ALL_T) ** 2, rtol=1e-4, atol=0
    )


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"clip_sample": True}, "clip_sample"),
        ({"thresholding": True}, "thresholding"),
        ({"prediction_type": "sample"}, "prediction_type=sample"),
        ({"beta_schedule": "sigmoid"}, "beta_schedule=sigmoid"),
        ({"rescale_betas_zero_snr": True}, "rescale_betas_zero_snr"),
        ({"trained_betas": [0.1, 1.5]}, "betas"),
    ],
)
def test_noise_schedule_of_unsupported_config_names_the_key(change, named):
    with pytest.raises(UserError, match=named):
        noise_schedule({**SD, **change})


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_to_x0_of_each_prediction_type_equals_a_scheduler_step(kind):
    """Compare the closed form with pred_original_sample, which the published code uses sample by sample."""
    from sid_core.models.backbones import StableDiffusion

    scheduler = DDIMScheduler(**SD, clip_sample=False, prediction_type=kind)
    scheduler.set_timesteps(1000)
    denoiser = StableDiffusion(torch.nn.Identity(), noise_schedule(SD), kind)
    x_t, output = torch.randn(2, 5, 4, 3, 3)
    t = torch.tensor([20, 300, 625, 900, 979])
    theirs = [scheduler.step(output[i], t[i], x_t[i]).pred_original_sample for i in range(5)]
    torch.testing.assert_close(denoiser.to_x0(output, x_t, t), torch.stack(theirs), rtol=1e-5, atol=1e-5)


def test_steps_of_n_evaluations_are_exact_floors():
    schedule = noise_schedule(SD)
    assert schedule.steps(625, 1) == [625]
    assert schedule.steps(625, 2) == [625, 312]
    assert schedule.steps(625, 4) == [625, 468, 312, 156]
    # 950 * (1 - 1/19) is 899.999… in floating point
    assert schedule.steps(950, 19)[1] == 900

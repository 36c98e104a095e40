"""Compare the schedule with that of diffusers."""

import math

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, FlowMatchEulerDiscreteScheduler

from sid_core.errors import UserError
from sid_core.method import one_step
from sid_core.method.schedule import FlowSchedule
from sid_core.models.backbones.base import Backbone
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


# --- flow matching -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_flow_schedule_adds_noise_on_the_straight_path_of_diffusers(shift):
    schedule, scheduler = FlowSchedule(shift), FlowMatchEulerDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(5)
    x0, eps, t = *torch.randn(2, 5, 4, 2, 2), scheduler.sigmas[:-1]
    torch.testing.assert_close(schedule.add_noise(x0, eps, t), scheduler.scale_noise(x0, scheduler.timesteps, eps))
    torch.testing.assert_close(schedule.network_time(t), scheduler.timesteps)


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_flow_schedule_step_to_x0_equals_the_step_of_diffusers(shift):
    schedule, scheduler = FlowSchedule(), FlowMatchEulerDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(4)
    x_t, v = torch.randn(2, 1, 4, 2, 2)
    for i, t in enumerate(scheduler.sigmas[:-1]):
        backbone = Backbone(torch.nn.Identity(), schedule, "flow")
        x0_hat = backbone.to_x0(v, x_t, t[None])
        following = schedule.add_noise(x0_hat, backbone.eps(x0_hat, x_t, t[None]), scheduler.sigmas[i + 1][None])
        torch.testing.assert_close(following, scheduler.step(v, scheduler.timesteps[i], x_t).prev_sample)
    assert scheduler.sigmas[-1] == 0  # the last step ends at x_0


def test_flow_schedule_starts_from_noise_alone():
    z = torch.randn(2, 3, 4, 4)

    class Velocity(torch.nn.Module):
        schedule = FlowSchedule()

        def forward(self, x_t, t, cond):
            assert torch.equal(x_t, z)
            assert t.tolist() == [1, 1]
            return x_t - 0.25

    assert torch.equal(one_step(Velocity(), z, 1000, None), z - 0.25)


@pytest.mark.parametrize(("low", "high"), [(20, 980), (300, 400)])
def test_flow_schedule_draws_a_clamped_logit_normal(low, high):
    t = FlowSchedule().draw(torch.Generator().manual_seed(0), 20_000, low, high)
    logit = torch.logit(t.double())
    inside = (t > low / 1000) & (t < high / 1000)
    assert t.min().item() == pytest.approx(low / 1000)
    assert t.max().item() == pytest.approx(high / 1000)
    bounds = torch.logit(torch.tensor([low / 1000, high / 1000], dtype=torch.float64))
    normal = torch.distributions.Normal(math.log(2), 1.6)
    assert inside.double().mean().item() == pytest.approx(normal.cdf(bounds).diff().item(), abs=0.01)
    assert logit.median().item() == pytest.approx(math.log(2) if high > 667 else bounds[1].item(), abs=0.05)


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_flow_schedule_steps_follow_the_shift_from_t_init(shift):
    steps = FlowSchedule(shift).steps(1000, 4)
    assert steps == pytest.approx([shift * u / (1 + (shift - 1) * u) for u in (1, 0.75, 0.5, 0.25)])
    assert FlowSchedule(shift).steps(1000, 2) == steps[::2]  # a mixture of four steps also samples in two
    assert FlowSchedule(shift).steps(625, 3)[0] == 0.625
    assert FlowSchedule().steps(600, 3) == pytest.approx([0.6, 0.4, 0.2])


def test_fake_weight_of_a_flow_turns_the_x0_error_into_that_of_the_velocity():
    schedule, t = FlowSchedule(), torch.tensor([0.02, 0.5, 0.98])
    x_t, v, error = torch.randn(3, 3, 4, 2, 2)
    backbone = Backbone(torch.nn.Identity(), schedule, "flow")
    difference = backbone.to_x0(v + error, x_t, t) - backbone.to_x0(v, x_t, t)
    torch.testing.assert_close(schedule.fake_weight(t) * difference**2, error**2, rtol=1e-3, atol=1e-5)

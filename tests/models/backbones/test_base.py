"""Check that guidance commutes with the conversion to x_0, and that kappa 0 and 1 evaluate once."""

import pytest
import torch
from diffusers import UNet2DConditionModel
from toy import ToyUNet

from sid_core.method import one_step
from sid_core.models.backbones import StableDiffusion
from sid_core.models.conditioning import Conditioning
from sid_core.models.scheduler import noise_schedule

SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


@pytest.fixture
def inputs():
    g = torch.Generator().manual_seed(1)
    return (
        torch.randn(4, 2, 4, 4, generator=g),
        torch.tensor([20, 300, 625, 979]),
        Conditioning(torch.randn(4, 5, 6, generator=g)),
        Conditioning(torch.randn(1, 5, 6, generator=g)),
    )


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("kappa", [-1.0, 0.0, 0.5, 1.5, 4.5])
def test_backbone_with_guidance_equals_guidance_of_x0(inputs, kind, kappa):
    x_t, t, cond, empty = inputs
    f = StableDiffusion(ToyUNet(0), noise_schedule(SD), kind)
    f_cond, f_empty = f(x_t, t, cond), f(x_t, t, empty.expand(4))
    torch.testing.assert_close(
        f(x_t, t, cond, empty, kappa), f_empty + kappa * (f_cond - f_empty), rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("kappa", [0.0, 1.0])
def test_backbone_at_scale_zero_or_one_evaluates_one_branch(inputs, kappa):
    x_t, t, cond, empty = inputs
    batches = []
    unet = ToyUNet(0)
    unet.register_forward_hook(lambda module, args, output: batches.append(len(args[0])))
    StableDiffusion(unet, noise_schedule(SD), "epsilon")(x_t, t, cond, empty, kappa)
    assert batches == [4]


def test_blocks_of_a_network_without_a_middle_are_those_of_its_levels():
    blocks = {"down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",), "block_out_channels": (8,)}
    unet = UNet2DConditionModel(**blocks, mid_block_type=None, layers_per_block=1, norm_num_groups=4)
    assert len(list(StableDiffusion(unet, noise_schedule(SD), "epsilon").blocks())) == 3


def test_eps_of_the_estimate_returns_the_networks_output(inputs):
    x_t, t, cond, _ = inputs
    f = StableDiffusion(ToyUNet(0), noise_schedule(SD), "epsilon")
    torch.testing.assert_close(
        f.eps(f(x_t, t, cond), x_t, t), f.network(x_t, t, cond.tokens).sample, rtol=1e-4, atol=1e-4
    )


def test_one_step_of_a_backbone_feeds_sigma_z(inputs):
    z, _, cond, _ = inputs
    f = StableDiffusion(ToyUNet(0), noise_schedule(SD), "epsilon")
    t = torch.full((4,), 625)
    eps_hat = f.network(0.928555 * z, t, cond.tokens).sample
    torch.testing.assert_close(one_step(f, z, 625, cond), 2.50172 * (z - eps_hat), rtol=1e-4, atol=1e-4)

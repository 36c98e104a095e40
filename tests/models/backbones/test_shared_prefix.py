"""The shared prefix of a guided pair gives what two evaluations give, values and gradients, at less than their cost."""

import logging

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch.utils.flop_counter import FlopCounterMode

from sid_core.models.backbones.shared_prefix import guided_pair, prove_pair, shares_prefix

CROSS, PLAIN = ("CrossAttnDownBlock2D", "CrossAttnUpBlock2D"), ("DownBlock2D", "UpBlock2D")


def unet(down=(CROSS[0], PLAIN[0]), up=(PLAIN[1], CROSS[1]), **more) -> UNet2DConditionModel:
    torch.manual_seed(0)
    settings = {
        "sample_size": 8,
        "block_out_channels": (8, 16),
        "layers_per_block": 2,
        "norm_num_groups": 4,
        "cross_attention_dim": 6,
        "attention_head_dim": 2,
        "down_block_types": down,
        "up_block_types": up,
    }
    return UNet2DConditionModel(**settings | more)


NETWORKS = {
    "stable-diffusion-1": {},  # attention first, the last down block without; convolutions as projections
    "stable-diffusion-2": {"use_linear_projection": True, "attention_head_dim": (2, 4)},
    "middle only": {"down": (PLAIN[0],) * 2, "up": (PLAIN[1],) * 2, "layers_per_block": 1},
    "two transformer blocks": {"transformer_layers_per_block": 2},
    "not Stable Diffusion's": {"class_embed_type": "timestep"},
    "centred input": {"center_input_sample": True},
}
WHOLE = ("not Stable Diffusion's", "centred input")


@pytest.fixture
def inputs():
    g = torch.Generator().manual_seed(1)
    shapes = (3, 4, 8, 8), (3, 5, 6), (3, 5, 6)
    return [torch.randn(shape, generator=g) for shape in shapes] + [torch.tensor([20, 400, 979])]


def pair_of_evaluations(network, x_t, t, uncond, cond):
    return torch.cat([network(x_t, t, encoder_hidden_states=text).sample for text in (uncond, cond)])


@pytest.mark.parametrize("name", [name for name in NETWORKS if name not in WHOLE])
def test_values_and_all_gradients_equal_two_evaluations(inputs, name):
    x_t, uncond, cond, t = inputs
    network = unet(**NETWORKS[name])
    assert shares_prefix(network)
    x_t.requires_grad_()
    weights = torch.randn(6, 4, 8, 8, generator=torch.Generator().manual_seed(2))
    results = []
    for evaluate in (guided_pair, pair_of_evaluations):
        output = evaluate(network, x_t, t, uncond, cond)
        gradients = torch.autograd.grad((output * weights).sum(), [x_t, *network.parameters()])
        results.append((output, *gradients))
    for shared, separate in zip(*results, strict=True):
        torch.testing.assert_close(shared, separate, rtol=1e-5, atol=1e-5 * separate.abs().max().item() + 1e-7)


def test_sizes_that_do_not_halve_evenly(inputs):
    _, uncond, cond, t = inputs
    x_t = torch.randn(3, 4, 7, 9, generator=torch.Generator().manual_seed(3))
    network = unet()
    torch.testing.assert_close(
        guided_pair(network, x_t, t, uncond, cond),
        pair_of_evaluations(network, x_t, t, uncond, cond),
        rtol=1e-4,
        atol=1e-5,
    )


def test_other_networks_are_evaluated_whole():
    assert not shares_prefix(unet(**NETWORKS["not Stable Diffusion's"]))
    assert not shares_prefix(torch.nn.Linear(1, 1))


def flops(evaluate) -> int:
    with FlopCounterMode(display=False) as counter:
        evaluate()
    return counter.get_total_flops()


@pytest.mark.parametrize(("name", "at_most"), [("stable-diffusion-1", 0.975), ("middle only", 0.9)])
def test_costs_less_than_two_evaluations(inputs, name, at_most):
    network, (x_t, uncond, cond, t) = unet(**NETWORKS[name]), inputs
    shared = flops(lambda: guided_pair(network, x_t, t, uncond, cond))
    separate = flops(lambda: pair_of_evaluations(network, x_t, t, uncond, cond))
    assert shared < at_most * separate


# --- the proof at the start --------------------------------------------------------------------------------------------


def test_guided_pair_of_a_centred_input_equals_two_evaluations(inputs):
    x_t, uncond, cond, t = inputs
    network = unet(center_input_sample=True)
    separate = pair_of_evaluations(network, x_t, t, uncond, cond)
    torch.testing.assert_close(guided_pair(network, x_t, t, uncond, cond), separate, rtol=1e-4, atol=1e-5)


def test_prove_pair_of_a_network_the_walk_does_not_know_evaluates_both_whole_and_says_so(inputs, caplog):
    x_t, uncond, cond, t = inputs
    network = unet()
    # stands for whatever a later diffusers does in a UNet's forward, which the walk goes around
    network.register_forward_hook(lambda _, args, output: type(output)(sample=output.sample * 1.001))
    separate = pair_of_evaluations(network, x_t, t, uncond, cond)
    assert not torch.allclose(guided_pair(network, x_t, t, uncond, cond), separate, rtol=1e-4, atol=1e-5)
    prove_pair(network)
    assert "guided pairs: the shared prefix differs from two evaluations by 1.0e-03" in caplog.text
    assert not shares_prefix(network)
    torch.testing.assert_close(guided_pair(network, x_t, t, uncond, cond), separate, rtol=1e-4, atol=1e-5)


def test_prove_pair_of_a_walk_that_fails_evaluates_both_whole_and_says_so(inputs, caplog):
    network = unet()
    network.conv_norm_out = None
    network.forward = lambda x, t, encoder_hidden_states: UNet2DConditionModel.forward(
        unet(), x, t, encoder_hidden_states
    )
    prove_pair(network)
    assert "guided pairs: the shared prefix fails (TypeError" in caplog.text
    assert not shares_prefix(network)


@pytest.mark.parametrize("name", [name for name in NETWORKS if name not in WHOLE])
def test_prove_pair_of_known_networks_keeps_the_shared_prefix_and_draws_nothing(name, caplog):
    network, before = unet(**NETWORKS[name]), torch.get_rng_state()
    weights = {key: tensor.clone() for key, tensor in network.state_dict().items()}
    with caplog.at_level(logging.INFO):
        prove_pair(network)
    assert shares_prefix(network)
    assert caplog.text == ""
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(tensor, weights[key]) for key, tensor in network.state_dict().items())


def test_copy_with_other_weights_keeps_the_verdict():
    from sid_core.training.flat import with_weights

    network = unet()
    network.register_forward_hook(lambda _, args, output: type(output)(sample=output.sample * 1.001))
    prove_pair(network)
    assert not shares_prefix(with_weights(network, dict(network.named_parameters())))

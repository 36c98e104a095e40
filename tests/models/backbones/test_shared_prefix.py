"""Compare the shared prefix of a guided pair to two evaluations: values, gradients and FLOPs."""

import logging

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch.utils.flop_counter import FlopCounterMode

from sid_core.models.backbones.shared_prefix import check_shared_prefix, guided_pair, shares_prefix

CROSS, PLAIN = ("CrossAttnDownBlock2D", "CrossAttnUpBlock2D"), ("DownBlock2D", "UpBlock2D")


def unet(down=(CROSS[0], PLAIN[0]), up=(PLAIN[1], CROSS[1]), **more) -> UNet2DConditionModel:
    torch.manual_seed(0)
    settings = {
        "sample_size": 8, "block_out_channels": (8, 16), "layers_per_block": 2, "norm_num_groups": 4,
        "cross_attention_dim": 6, "attention_head_dim": 2, "down_block_types": down, "up_block_types": up,
    }  # fmt: skip
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
def test_guided_pair_of_known_networks_equals_two_evaluations_with_gradients(inputs, name):
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


def test_guided_pair_of_odd_sizes_equals_two_evaluations(inputs):
    _, uncond, cond, t = inputs
    x_t = torch.randn(3, 4, 7, 9, generator=torch.Generator().manual_seed(3))
    network = unet()
    torch.testing.assert_close(
        guided_pair(network, x_t, t, uncond, cond),
        pair_of_evaluations(network, x_t, t, uncond, cond),
        rtol=1e-4,
        atol=1e-5,
    )


def test_shares_prefix_of_other_networks_is_false():
    assert not shares_prefix(unet(**NETWORKS["not Stable Diffusion's"]))
    assert not shares_prefix(torch.nn.Linear(1, 1))


def flops(evaluate) -> int:
    with FlopCounterMode(display=False) as counter:
        evaluate()
    return counter.get_total_flops()


@pytest.mark.parametrize(("name", "at_most"), [("stable-diffusion-1", 0.975), ("middle only", 0.9)])
def test_guided_pair_takes_fewer_flops_than_two_evaluations(inputs, name, at_most):
    network, (x_t, uncond, cond, t) = unet(**NETWORKS[name]), inputs
    shared = flops(lambda: guided_pair(network, x_t, t, uncond, cond))
    separate = flops(lambda: pair_of_evaluations(network, x_t, t, uncond, cond))
    assert shared < at_most * separate


# --- the check on loading ----------------------------------------------------------------------------------------------


def test_guided_pair_of_a_centred_input_equals_two_evaluations(inputs):
    x_t, uncond, cond, t = inputs
    network = unet(center_input_sample=True)
    separate = pair_of_evaluations(network, x_t, t, uncond, cond)
    torch.testing.assert_close(guided_pair(network, x_t, t, uncond, cond), separate, rtol=1e-4, atol=1e-5)


def test_check_shared_prefix_of_a_changed_forward_disables_it_and_warns(inputs, caplog):
    x_t, uncond, cond, t = inputs
    network = unet()
    # represents a later diffusers whose forward does more than guided_pair repeats
    network.register_forward_hook(lambda _, args, output: type(output)(sample=output.sample * 1.001))
    separate = pair_of_evaluations(network, x_t, t, uncond, cond)
    assert not torch.allclose(guided_pair(network, x_t, t, uncond, cond), separate, rtol=1e-4, atol=1e-5)
    check_shared_prefix(network)
    assert "guided pairs: the shared prefix differs from two evaluations by 1.0e-03" in caplog.text
    assert not shares_prefix(network)
    torch.testing.assert_close(guided_pair(network, x_t, t, uncond, cond), separate, rtol=1e-4, atol=1e-5)


def test_check_shared_prefix_of_a_failing_pair_disables_it_and_warns(inputs, caplog):
    network = unet()
    network.conv_norm_out = None
    network.forward = lambda x, t, encoder_hidden_states: UNet2DConditionModel.forward(
        unet(), x, t, encoder_hidden_states
    )
    check_shared_prefix(network)
    assert "guided pairs: the shared prefix fails (TypeError" in caplog.text
    assert not shares_prefix(network)


@pytest.mark.parametrize("name", [name for name in NETWORKS if name not in WHOLE])
def test_check_shared_prefix_of_known_networks_changes_no_weights_and_no_random_state(name, caplog):
    network, before = unet(**NETWORKS[name]), torch.get_rng_state()
    weights = {key: tensor.clone() for key, tensor in network.state_dict().items()}
    with caplog.at_level(logging.INFO):
        check_shared_prefix(network)
    assert shares_prefix(network)
    assert caplog.text == ""
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(tensor, weights[key]) for key, tensor in network.state_dict().items())


def test_shares_prefix_of_a_copy_with_other_weights_is_inherited():
    from sid_core.training.flat import with_weights

    network = unet()
    network.register_forward_hook(lambda _, args, output: type(output)(sample=output.sample * 1.001))
    check_shared_prefix(network)
    assert not shares_prefix(with_weights(network, dict(network.named_parameters())))

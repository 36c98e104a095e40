"""Test activation checkpointing, offloading and compilation of blocks: equal results, less memory."""

import copy

import pytest
import torch
from torch import Tensor

from sid_core.models import architectures
from sid_core.models.conditioning import Conditioning
from sid_core.models.teacher import load_backbone
from sid_core.training.blocks import blocks_to_shard, checkpoint_blocks, compile_blocks


@pytest.fixture
def denoiser(tiny_teacher):
    return load_backbone(tiny_teacher)


@pytest.fixture
def inputs():
    torch.manual_seed(0)
    return torch.randn(2, 4, 8, 8), torch.tensor([30, 800]), *(Conditioning(torch.randn(n, 12, 16)) for n in (2, 1))


def backward(denoiser, inputs, frozen, scale):
    """Return gradients, and the bytes stored for them."""
    x_t, t, cond, uncond = inputs
    leaf, kept = x_t.clone().requires_grad_(), {}
    denoiser.requires_grad_(not frozen)

    def keep(tensor):
        if not isinstance(tensor, torch.nn.Parameter):
            kept[tensor.data_ptr()] = tensor.nbytes
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        x0_hat = denoiser(leaf, t, cond, uncond, scale)
    forward_bytes = sum(kept.values())
    x0_hat.square().sum().backward()
    return [leaf.grad, *(p.grad for p in denoiser.parameters() if p.grad is not None)], forward_bytes


@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_checkpoint_blocks_gives_equal_gradients_and_stores_less(denoiser, inputs, frozen, scale):
    other = copy.deepcopy(denoiser)
    checkpoint_blocks(other)
    (plain, kept), (again, kept_less) = (backward(d, inputs, frozen, scale) for d in (denoiser, other))
    assert len(plain) == len(again)
    assert (len(plain) == 1) == frozen
    for a, b in zip(plain, again, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)
    assert kept_less < 0.7 * kept


def test_step_with_checkpointing_gives_equal_bits(make_trainer):
    plain, checkpointed = make_trainer(), make_trainer(checkpointing=True)
    for trainer in (plain, checkpointed):
        trainer.step()
    torch.testing.assert_close(plain.gradient.parameters, checkpointed.gradient.parameters, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("offload", ["ema", "optimizer", "all"])
def test_step_with_offload_gives_equal_bits(make_trainer, monkeypatch, precision, offload):
    monkeypatch.setattr("sid_core.training.flat.SLICE", 1024)  # many slices
    trainers = [make_trainer(precision=precision, offload=where) for where in ("none", offload)]
    for trainer in trainers:
        trainer.step()
        trainer.step()
        trainer.gather_ema()
    plain, offloaded = trainers
    assert torch.equal(plain.ema_weights, offloaded.ema_weights)
    assert torch.equal(plain.trained["fake_score"].master, offloaded.trained["fake_score"].master)
    assert torch.equal(plain.grid_latents(2), offloaded.grid_latents(2))
    assert plain.ema_drift() == offloaded.ema_drift()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="compiling for a CPU takes minutes and gains nothing")
def test_compile_blocks_gives_equal_outputs(denoiser, inputs):
    denoiser.cuda()
    x_t, t, cond, uncond = (each.map(Tensor.cuda) if isinstance(each, Conditioning) else each.cuda() for each in inputs)
    plain = denoiser(x_t, t, cond, uncond, 2.0)
    compile_blocks(denoiser)
    torch.testing.assert_close(denoiser(x_t, t, cond, uncond, 2.0), plain, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["sd35-medium", "sana-600m", "flux-dev"])
def test_blocks_to_shard_of_a_transformer_hold_nearly_all_weights(name):
    backbone = architectures.new_backbone(architectures.from_name(name), "meta")
    blocks = blocks_to_shard(backbone)
    assert blocks == list(backbone.blocks())
    held = sum(p.numel() for block in blocks for p in block.parameters())
    assert held > 0.97 * sum(p.numel() for p in backbone.network.parameters())

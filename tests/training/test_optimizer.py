"""Compare Adam on a vector with torch's on the parameters."""

import pytest
import torch
from torch import nn

from sid_core.training import optimizer
from sid_core.training.flat import Layout, norm, with_weights
from sid_core.training.optimizer import Adam

CPU, GO, SKIP = torch.device("cpu"), torch.zeros(()), torch.ones(())


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 5, 3), nn.Linear(7, 11), nn.LayerNorm(11))


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("eps", [1e-8, 1e-3])
def test_adam_equals_adam_of_torch(monkeypatch, eps, fused):
    monkeypatch.setattr(optimizer, "EPS", eps)
    theirs, ours = network(), network()
    layout = Layout(ours)
    vector, gradient = layout.gather(ours), torch.zeros(layout.size)
    ours = with_weights(ours, layout.views(vector))
    adam = Adam(vector, 1e-2, CPU)
    reference = torch.optim.Adam(theirs.parameters(), lr=1e-2, betas=(0.0, 0.999), eps=eps, fused=fused)
    for _ in range(5):
        for p, view in zip(theirs.parameters(), layout.views(gradient).values(), strict=True):
            p.grad = torch.randn_like(p)
            view.copy_(p.grad)
        given = gradient.clone()
        reference.step()
        adam.step(gradient, GO)
        assert torch.equal(gradient, given)
    for p, q in zip(theirs.parameters(), ours.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=2e-6, atol=1e-7)


def test_adam_step_with_skip_changes_nothing():
    adam = Adam(torch.randn(128), 1e-2, CPU)
    adam.step(torch.randn(128), GO)
    before = [t.clone() for t in (adam.parameters, adam.second, adam.steps)]
    adam.step(torch.full((128,), float("nan")), SKIP)
    assert all(torch.equal(a, b) for a, b in zip(before, (adam.parameters, adam.second, adam.steps), strict=True))


def test_layout_contiguous_views_hold_the_parameters_in_the_vectors_own_memory():
    net = network().to(memory_format=torch.channels_last)
    layout = Layout(net)
    vector = layout.gather(net)
    views = layout.contiguous_views(vector)
    for name, p in net.named_parameters():
        assert torch.equal(views[name], p)
        assert views[name].is_contiguous()
        assert views[name].untyped_storage().data_ptr() == vector.untyped_storage().data_ptr()
    assert not torch.equal(layout.views(vector)["0.weight"], net[0].weight)  # it was not contiguous


def test_layout_views_keep_names_shapes_and_memory_format():
    net = network()
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    net.to(memory_format=torch.channels_last)
    layout = Layout(net)
    vector = layout.gather(net)
    net = with_weights(net, layout.views(vector))
    assert net[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert all(torch.equal(p, before[name]) for name, p in net.named_parameters())
    vector.mul_(2)  # parameters are views
    assert all(torch.equal(p, 2 * before[name]) for name, p in net.named_parameters())
    assert norm(vector).item() == pytest.approx(torch.cat([p.flatten() for p in net.parameters()]).norm().item())

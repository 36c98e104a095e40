"""Compare adapters with the formula W + B A, and follow them from training to a file and back."""

import pytest
import torch
import torch.nn.functional as F

from sid_core.config import Lora
from sid_core.errors import UserError
from sid_core.models import architectures
from sid_core.models.conditioning import Conditioning
from sid_core.models.generator import load_generator, save_generator
from sid_core.models.lora import FILE, adapted, own_weights
from sid_core.models.teacher import load_backbone, teacher_sha256

SMALL = architectures.from_name("small")


def make(rank: int = 3, targets: list[str] | None = None, seed: int = 0):
    """Return a base of random weights, and the base adapted with random A and B."""
    base = architectures.new_backbone(SMALL, "cpu").frozen()
    backbone = adapted(base, Lora(rank=rank, targets=targets), torch.Generator().manual_seed(seed))
    stream = torch.Generator().manual_seed(seed + 1)
    for weight in own_weights(dict(backbone.network.named_parameters())).values():
        weight.copy_(0.1 * torch.randn(weight.shape, generator=stream))
    return base, backbone


def inputs(count: int = 2):
    stream = torch.Generator().manual_seed(7)
    x_t, text = torch.randn(count, *SMALL.latent_shape, generator=stream), torch.randn(count + 1, *SMALL.text_shape)
    return x_t, torch.tensor([20, 600])[:count], Conditioning(text[1:]), Conditioning(text[:1])


def test_adapted_shares_the_weights_of_the_base_and_gives_its_outputs():
    base = architectures.new_backbone(SMALL, "cpu").frozen()
    backbone = adapted(base, Lora(rank=3), torch.Generator().manual_seed(0))
    own, named = own_weights(dict(backbone.network.named_parameters())), dict(base.network.named_parameters())
    shared = {name: p for name, p in backbone.network.named_parameters() if name not in own}
    assert shared.keys() == named.keys()
    assert all(shared[name] is p for name, p in named.items())
    assert all((weight == 0).all() == name.endswith("B.weight") for name, weight in own.items())
    given = inputs()
    assert torch.equal(backbone(*given, 2.0), base(*given, 2.0))


@pytest.mark.parametrize("scale", [0, 1, 2.0])
def test_adapted_equals_a_network_of_weights_plus_products(scale):
    """Merge by a formula of its own: the convolution of B with A."""
    base, backbone = make()
    summed = architectures.new_backbone(SMALL, "cpu").frozen()
    for name, layer in backbone.network.named_modules():
        if hasattr(layer, "lora_A"):
            a, b, weight = layer.lora_A.weight, layer.lora_B.weight, summed.network.get_submodule(name).weight
            weight += torch.einsum("or,ri...->oi...", b.flatten(1), a)
    given = inputs()
    expected = summed(*given, scale)
    torch.testing.assert_close(backbone(*given, scale), expected, rtol=1e-4, atol=1e-4)
    assert (expected - base(*given, scale)).abs().max() > 1e-2


@pytest.mark.parametrize("kind", ["linear", "convolution"])
def test_gradients_of_adapters_equal_those_of_the_product(kind):
    """Check dL/dB = G A^T and dL/dA = B^T G, where G is the gradient of the whole weight."""
    _, backbone = make(targets=["to_q" if kind == "linear" else "downsamplers.0.conv"])
    layer = next(module for module in backbone.network.modules() if hasattr(module, "lora_A"))
    stream = torch.Generator().manual_seed(0)
    x = torch.randn(2, 6, layer.in_features) if kind == "linear" else torch.randn(2, layer.in_channels, 8, 8)
    a, b = layer.lora_A.weight.requires_grad_(), layer.lora_B.weight.requires_grad_()
    y = layer(x)
    weight = torch.randn(y.shape, generator=stream)
    (y * weight).sum().backward()
    whole = (layer.weight + (b.flatten(1) @ a.flatten(1)).view(layer.weight.shape)).detach().requires_grad_()
    if kind == "linear":
        out = F.linear(x, whole, layer.bias)
    else:
        out = F.conv2d(x, whole, layer.bias, layer.stride, layer.padding)
    (out * weight).sum().backward()
    whole_gradient = whole.grad.flatten(1)
    torch.testing.assert_close(b.grad.flatten(1), whole_gradient @ a.detach().flatten(1).T, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(a.grad.flatten(1), b.detach().flatten(1).T @ whole_gradient, rtol=1e-4, atol=1e-4)
    assert layer.weight.grad is None


def test_adapted_adapts_the_named_layers_alone():
    _, backbone = make(targets=["attn2.to_k", "conv1"])
    names = {name for name, module in backbone.network.named_modules() if hasattr(module, "lora_A")}
    assert {name.rpartition(".")[2] for name in names} == {"to_k", "conv1"}
    assert all("attn2" in name for name in names if name.endswith("to_k"))
    assert {module.lora_A.weight.shape[0] for module in backbone.network.modules() if hasattr(module, "lora_A")} == {3}


@pytest.mark.parametrize(
    ("targets", "named"),
    [(["to_q", "to_z"], "lora.targets=to_z: expected endings"), (["norm1"], "lora.targets=norm1: expected endings")],
)
def test_adapted_with_unknown_targets_names_known_ones(targets, named):
    with pytest.raises(UserError, match=named) as raised:
        make(targets=targets)
    assert "to_q, to_k, to_v" in str(raised.value)


def test_adapted_of_a_family_without_usual_targets_asks_for_some(monkeypatch):
    base = architectures.new_backbone(SMALL, "cpu").frozen()
    monkeypatch.setattr(type(base), "ADAPTED", ())
    with pytest.raises(UserError, match="targets=null: expected endings"):
        adapted(base, Lora(rank=1), torch.Generator())


def test_generator_of_adapters_in_a_file_gives_their_outputs(tiny_teacher, tmp_path):
    base = load_backbone(tiny_teacher)
    backbone = adapted(base, Lora(rank=2), torch.Generator().manual_seed(0))
    weights = own_weights(backbone.network.state_dict())
    for name, weight in weights.items():
        weight.copy_(0.1 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(len(name))))
    record = {"t_init": 625, "num_steps": 1, "teacher_sha256": teacher_sha256(tiny_teacher)}
    save_generator(tmp_path / "generator", backbone, weights, record)
    files = {path.name for path in (tmp_path / "generator" / "unet").iterdir()}
    assert files == {FILE, "config.json"}
    loaded, _ = load_generator(tmp_path / "generator", tiny_teacher)
    x_t, t = torch.randn(2, 4, 8, 8), torch.tensor([625, 625])
    cond = Conditioning(torch.randn(2, 8, base.network.config.cross_attention_dim))
    expected = backbone(x_t, t, cond)
    torch.testing.assert_close(loaded(x_t, t, cond), expected, rtol=1e-4, atol=1e-4)
    assert (expected - base(x_t, t, cond)).abs().max() > 1e-2

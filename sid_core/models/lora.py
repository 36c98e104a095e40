"""Adapt a network by LoRA (arXiv 2106.09685): a layer gives W x + B A x; A and B of a small rank are trained, W is frozen.

Networks adapted from one base share its weights: only their adapters are their own. alpha is the rank, so that B A has no
factor, which readers of a file without alpha assume. A file has the names of diffusers and peft.

peft itself is not used: diffusers and transformers import it and accelerate wherever they are installed, a second of CPU
time in every process of a pipeline (7.1 -> 8.1 s), with LoRA or without. tests/models/test_lora_in_diffusers.py compares with it.
"""

import copy
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from ..errors import UserError
from .backbones import Backbone

if TYPE_CHECKING:
    from ..config import Lora

FILE = "pytorch_lora_weights.safetensors"  # the one that diffusers' load_lora_weights reads in a folder
MARK = ".lora_"  # in the names of adapters' weights
Value = TypeVar("Value")


def adapted(backbone: Backbone, lora: "Lora", stream: torch.Generator) -> Backbone:
    """Return the backbone with adapters in host memory, around the same weights. B is zero, so outputs are equal.

    Args:
        stream: draws A as torch initialises a linear layer.

    Raises:
        UserError: a target is no linear layer or convolution of the network.
    """
    shared = (*backbone.network.parameters(), *backbone.network.buffers())
    network = copy.deepcopy(backbone.network, {id(tensor): tensor for tensor in shared})
    for layer in _layers(network, lora.targets, backbone.ADAPTED):
        sizes = {"bias": False, "device": "cpu"}
        if isinstance(layer, nn.Conv2d):
            geometry = {name: getattr(layer, name) for name in ("stride", "padding", "dilation", "padding_mode")}
            down = nn.utils.skip_init(nn.Conv2d, layer.in_channels, lora.rank, layer.kernel_size, **geometry, **sizes)
            up = nn.utils.skip_init(nn.Conv2d, lora.rank, layer.out_channels, 1, **sizes)
        else:
            down = nn.utils.skip_init(nn.Linear, layer.in_features, lora.rank, **sizes)
            up = nn.utils.skip_init(nn.Linear, lora.rank, layer.out_features, **sizes)
        with torch.no_grad():
            bound = down.weight[0].numel() ** -0.5
            down.weight.uniform_(-bound, bound, generator=stream)
            up.weight.zero_()
        if layer.weight.is_contiguous(memory_format=torch.channels_last):
            down.to(memory_format=torch.channels_last)
        layer.lora_A, layer.lora_B = down, up
        layer.register_forward_hook(_add_product)
    return backbone.with_network(network).frozen()


def _add_product(layer: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
    x = inputs[0].to(layer.lora_A.weight.dtype)  # float32 averages on a 16-bit base
    return output + layer.lora_B(layer.lora_A(x)).to(output.dtype)


def _layers(network: nn.Module, targets: Collection[str] | None, usual: Collection[str]) -> list[nn.Module]:
    """Return the layers whose names end in one of `targets`, or of `usual` where it is None."""
    kinds = {
        name: module
        for name, module in network.named_modules()
        if isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and module.groups == 1)
    }

    def ending(target: str) -> list[str]:
        return [name for name in kinds if f".{name}".endswith(f".{target}")]

    unknown = [target for target in (usual if targets is None else targets) if not ending(target)]
    if targets is None and len(unknown) < len(usual):
        unknown = []  # a small network lacks some of the layers of its family
    if unknown or not (targets or usual):
        known = dict.fromkeys(name.rpartition(".")[2] for name in kinds if not name.rpartition(".")[2].isdigit())
        raise UserError(
            f"lora.targets={', '.join(unknown) or 'null'}: expected endings of names of linear layers or convolutions of the "
            f"{type(network).__name__}, such as {', '.join(list(known)[:12])}. Fix: name some"
        )
    chosen = {name for target in targets or usual for name in ending(target)}
    return [module for name, module in kinds.items() if name in chosen]


def own_weights(named: Mapping[str, Value]) -> dict[str, Value]:
    """Return the entries of adapters by name, or all of a network without adapters."""
    return {name: value for name, value in named.items() if MARK in name} or dict(named)


def merge(network: nn.Module, file: Path, prefix: str) -> None:
    """Add B A of a file to the weights of a network; names in the file begin with `prefix`."""
    weights = load_file(file)
    for name, down in weights.items():
        layer, _, part = name.removeprefix(f"{prefix}.").rpartition(MARK)
        if part == "A.weight":
            up = weights[name.removesuffix(part) + "B.weight"]
            weight = network.get_submodule(layer).weight
            weight.add_((up.flatten(1) @ down.flatten(1)).view(weight.shape))

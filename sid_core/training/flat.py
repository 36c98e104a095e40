"""The parameters of a network as one vector.

Optimizer, EMA, 16-bit copies, the sum over processes and the gradient's norm then are one operation each, whatever the number of
layers; names matter only where a state is saved. A vector may live in the host's memory, or each process may keep a part of it.
"""

import copy
import re
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import TypeVar

import torch
from torch import Tensor, nn

ALIGN = 64  # elements; every tensor starts at a multiple of it, as vectorised kernels like
SLICE = 2**24  # elements of an offloaded vector that are on the device at once: 64 MB

Network = TypeVar("Network", bound=nn.Module)


class Layout:
    """Where each parameter of a network lies in a vector; networks of one architecture share a layout.

    Args:
        shares: equal parts that a vector can be cut into.
        backward_order: top-level module -> its place in backward, where that is not the reversed order of the parameters; 0 else.

    Attributes:
        size: elements of a vector. Gaps between parameters are zero in every vector, and stay it.
        blocks: parts of a vector whose gradients are complete one after the other, in about this order: (names, where they lie).
    """

    def __init__(self, network: nn.Module, shares: int = 1, backward_order: Mapping[str, int] = MappingProxyType({})):
        self._slots: dict[str, tuple[torch.Size, tuple[int, ...], int]] = {}
        self.size = 0
        blocks: dict[str, list[str]] = {}
        for name, parameter in network.named_parameters():
            # strides are kept: channels_last weights stay channels_last
            self._slots[name] = (parameter.shape, parameter.stride(), self.size)
            self.size += _aligned(parameter.numel(), ALIGN)
            blocks.setdefault(re.match(r"\w+(\.\d+)?", name)[0], []).append(name)
        self.size = _aligned(self.size, ALIGN * shares)
        order = sorted(reversed(blocks), key=lambda block: backward_order.get(block.split(".")[0], 0))
        self.blocks = [(blocks[block], self._extent(blocks[block])) for block in order]

    def _extent(self, names: list[str]) -> slice:
        shape, _, offset = self._slots[names[-1]]
        return slice(self._slots[names[0]][2], offset + _aligned(shape.numel(), ALIGN))

    def views(self, vector: Tensor) -> dict[str, Tensor]:
        """Every parameter's part of `vector`, by name, in its own shape."""
        return {
            name: vector.as_strided(shape, stride, vector.storage_offset() + offset)
            for name, (shape, stride, offset) in self._slots.items()
        }

    def gather(self, network: nn.Module) -> Tensor:
        """A float32 vector (size,) with the network's parameters, where they are."""
        parameters = dict(network.named_parameters())
        vector = torch.zeros(self.size, device=next(iter(parameters.values())).device)
        for name, view in self.views(vector).items():
            view.copy_(parameters[name].detach())
        return vector


def with_weights(network: Network, weights: dict[str, Tensor]) -> Network:
    """A copy of a frozen network that computes with `weights` (by name) themselves; its own are not copied on the way."""
    memo = {id(p): nn.Parameter(weights[name], requires_grad=False) for name, p in network.named_parameters()}
    return copy.deepcopy(network, memo)


def placed(vector: Tensor, device: torch.device, offloaded: bool) -> Tensor:
    """A copy on the device; or in the host's memory, pinned where a GPU fetches from it."""
    if not offloaded:
        return vector.to(device, copy=True)
    vector = vector.to("cpu", copy=True)
    return vector.pin_memory() if device.type == "cuda" else vector


def on_device(device: torch.device, offloaded: bool, *vectors: Tensor) -> Iterator[tuple[slice, list[Tensor]]]:
    """The vectors themselves; or of offloaded ones copies of each part, written back when the next is asked for."""
    if not offloaded:
        yield slice(None), list(vectors)
        return
    for start in range(0, len(vectors[0]), SLICE):
        rows = slice(start, start + SLICE)
        here = [vector[rows].to(device, non_blocking=True, copy=True) for vector in vectors]
        yield rows, here
        for vector, part in zip(vectors, here, strict=True):
            vector[rows].copy_(part)


def row_norms(vector: Tensor) -> Tensor:
    """Norms of rows of ALIGN: one long float32 sum on a CPU is wrong in the fifth digit."""
    return torch.linalg.vector_norm(vector.view(-1, ALIGN), dim=1)


def norm(vector: Tensor) -> Tensor:
    """Euclidean norm of a vector of a layout's size."""
    return torch.linalg.vector_norm(row_norms(vector))


def _aligned(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple

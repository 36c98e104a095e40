"""Store the parameters of a network in one vector.

Optimizer, EMA, 16-bit copies, all-reduce and gradient norm are then one operation each, for any number of layers;
names matter only in checkpoints. A vector may be in host memory, or sharded over the ranks.
"""

import copy
import re
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import TypeVar

import torch
from torch import Tensor, nn

from ..models.lora import own_weights

ALIGN = 64  # elements; every parameter starts at a multiple of it, for vectorised kernels
SLICE = 2**24  # elements of an offloaded vector that are on the device at once: 64 MB

Network = TypeVar("Network", bound=nn.Module)


class Layout:
    """Offsets of a network's parameters in a vector, or of its adapters' alone; networks of one architecture share a layout.

    Args:
        shards: number of equal shards; the size is padded to a multiple.
        backward_order: top-level module -> its rank in backward, for modules out of the reversed order of
            parameters; others have 0.

    Attributes:
        size: elements of a vector. Gaps between parameters are zero in every vector, and remain zero.
        blocks: (names, slice) of consecutive parameters, approximately in the order in which backward completes
            their gradients.
    """

    def __init__(self, network: nn.Module, shards: int = 1, backward_order: Mapping[str, int] = MappingProxyType({})):
        self._slots: dict[str, tuple[torch.Size, tuple[int, ...], int]] = {}
        self.size = 0
        blocks: dict[str, list[str]] = {}
        for name, parameter in own_weights(dict(network.named_parameters())).items():
            # with strides: channels_last weights must remain channels_last
            self._slots[name] = (parameter.shape, parameter.stride(), self.size)
            self.size += _aligned(parameter.numel(), ALIGN)
            blocks.setdefault(re.match(r"\w+(\.\d+)?", name)[0], []).append(name)
        self.size = _aligned(self.size, ALIGN * shards)
        order = sorted(reversed(blocks), key=lambda block: backward_order.get(block.split(".")[0], 0))
        self.blocks = [(blocks[block], self._extent(blocks[block])) for block in order]

    def _extent(self, names: list[str]) -> slice:
        shape, _, offset = self._slots[names[-1]]
        return slice(self._slots[names[0]][2], offset + _aligned(shape.numel(), ALIGN))

    def views(self, vector: Tensor) -> dict[str, Tensor]:
        """Return views of `vector` by parameter name, in the parameters' shapes."""
        return {
            name: vector.as_strided(shape, stride, vector.storage_offset() + offset)
            for name, (shape, stride, offset) in self._slots.items()
        }

    def contiguous_views(self, vector: Tensor) -> dict[str, Tensor]:
        """Return contiguous views by name, for a file; reorders channels_last parameters of `vector` in place.

        Only one parameter is copied at a time: all copies together would double the memory of a checkpoint.
        """
        views = self.views(vector)
        for name, view in views.items():
            if not view.is_contiguous():
                ordered = view.contiguous()
                views[name] = view.as_strided(ordered.shape, ordered.stride()).copy_(ordered)
        return views

    def gather(self, network: nn.Module) -> Tensor:
        """Copy the network's parameters to a float32 vector (size,) on their device."""
        parameters = own_weights(dict(network.named_parameters()))
        vector = torch.zeros(self.size, device=next(iter(parameters.values())).device)
        for name, view in self.views(vector).items():
            view.copy_(parameters[name].detach())
        return vector


def with_weights(network: Network, weights: dict[str, Tensor]) -> Network:
    """Copy a frozen network with `weights`, by name, as parameters or buffers; it shares the others, and no tensor is copied."""
    memo = {
        id(p): nn.Parameter(weights[name], requires_grad=False) if name in weights else p
        for name, p in network.named_parameters()
    }
    memo |= {id(buffer): weights.get(name, buffer) for name, buffer in network.named_buffers()}
    return copy.deepcopy(network, memo)


def placed(vector: Tensor, device: torch.device, offloaded: bool) -> Tensor:
    """Copy to the device, or if `offloaded` to host memory, pinned for a GPU."""
    if not offloaded:
        return vector.to(device, copy=True)
    vector = vector.to("cpu", copy=True)
    return vector.pin_memory() if device.type == "cuda" else vector


def on_device(device: torch.device, offloaded: bool, *vectors: Tensor) -> Iterator[tuple[slice, list[Tensor]]]:
    """Yield slices and the vectors on `device`.

    Vectors on the device are yielded whole. Offloaded ones are copied slice by slice and written back afterwards.
    """
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
    """Return norms of rows of ALIGN elements; one long float32 sum on a CPU is wrong in the fifth digit."""
    return torch.linalg.vector_norm(vector.view(-1, ALIGN), dim=1)


def norm(vector: Tensor) -> Tensor:
    """Return the Euclidean norm of a vector of a layout's size."""
    return torch.linalg.vector_norm(row_norms(vector))


def _aligned(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple

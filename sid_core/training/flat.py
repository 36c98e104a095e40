"""The parameters of a network as one vector.

Optimizer, EMA, 16-bit copies, the sum over processes and the gradient's norm then are one operation each, whatever the number of
layers; names matter only where a state is saved.
"""

import torch
from torch import Tensor, nn

ALIGN = 64  # elements; every tensor starts at a multiple of it, as vectorised kernels like


class Layout:
    """Where each parameter of a network lies in a vector; networks of one architecture share a layout.

    Attributes:
        size: elements of a vector. Gaps between parameters are zero in every vector, and stay it.
    """

    def __init__(self, network: nn.Module):
        self._slots: dict[str, tuple[torch.Size, tuple[int, ...], int]] = {}
        self.size = 0
        for name, parameter in network.named_parameters():
            # strides are kept: channels_last weights stay channels_last
            self._slots[name] = (parameter.shape, parameter.stride(), self.size)
            self.size += -(-parameter.numel() // ALIGN) * ALIGN

    def views(self, vector: Tensor) -> dict[str, Tensor]:
        """Every parameter's part of `vector`, by name, in its own shape."""
        return {
            name: vector.as_strided(shape, stride, vector.storage_offset() + offset)
            for name, (shape, stride, offset) in self._slots.items()
        }

    def gather(self, network: nn.Module) -> Tensor:
        """A float32 vector (size,) with the network's parameters."""
        parameters = dict(network.named_parameters())
        vector = torch.zeros(self.size, device=next(iter(parameters.values())).device)
        for name, view in self.views(vector).items():
            view.copy_(parameters[name].detach())
        return vector

    def bind(self, network: nn.Module, vector: Tensor) -> None:
        """Make the network's parameters views of `vector`, in its type and on its device."""
        views = self.views(vector)
        for name, parameter in network.named_parameters():
            parameter.data = views[name]


def norm(vector: Tensor) -> Tensor:
    """Euclidean norm of a vector of a layout's size, by rows: one long float32 sum on a CPU is wrong in the fifth digit."""
    return torch.linalg.vector_norm(torch.linalg.vector_norm(vector.view(-1, ALIGN), dim=1))

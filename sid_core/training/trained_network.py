"""Train a network: float32 weights, gradient and optimizer, and a module that computes in its own dtype."""

from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..method import DTYPES
from ..models.backbones import Backbone
from ..models.lora import own_weights
from .distributed import OverlappedAllReduce, World
from .flat import Layout, norm, on_device, placed, with_weights
from .optimizer import Adam
from .precision import UpdateGuard

if TYPE_CHECKING:
    from ..config import Distill

NONFINITE_LIMIT = 10  # consecutive skipped updates that end a run with `nonfinite: skip`


class Gradient:
    """One float32 gradient, used by both trained networks in turn.

    Between iterations its memory is a reused buffer for all-gathered vectors.

    Attributes:
        parameters: the gradient, a vector of the layout.
        views: views of it by parameter name.
    """

    def __init__(self, layout: Layout, device: torch.device, world: World):
        self.world = world
        self.parameters = torch.zeros(layout.size, device=device)
        self.views = layout.views(self.parameters)
        self._block = {name: i for i, (names, _) in enumerate(layout.blocks) for name in names}
        self._sum = OverlappedAllReduce(world, [(self.parameters[part], len(names)) for names, part in layout.blocks])

    def take(self, name: str, parameter: Tensor) -> None:
        """Take over a parameter's complete gradient, as a hook of backward.

        A 16-bit gradient is added to the float32 one and freed at once.
        """
        if parameter.dtype != torch.float32:  # backward adds float32 gradients in place
            self.views[name].add_(parameter.grad)
            parameter.grad = None
        self._sum.arrived(self._block[name])

    def begin_sum(self) -> None:
        """All-reduce gradients as the last backward completes them."""
        if self.world.size > 1:
            self._sum.begin()

    def finish_sum(self) -> None:
        if self.world.size > 1:
            self._sum.finish()


class TrainedNetwork:
    """The fake score or the generator, initialised from the teacher's weights.

    Args:
        source: the teacher, or with LoRA the teacher with adapters, whose other weights are shared.
        start: its float32 weights or those of its adapters, a vector, on any device.
        own: slice of a vector that this rank stores and updates: all of it, or its shard.

    Attributes:
        backbone: the Backbone that computes. Its parameters are views of `master`, or of a copy if they are 16-bit or
            `master` is in host memory or sharded.
        master: the float32 weights, a vector (own).
        lr: learning rate at the start of the run.
    """

    def __init__(
        self,
        source: Backbone,
        start: Tensor,
        layout: Layout,
        own: slice,
        settings: "Distill",
        lr: float,
        device: torch.device,
        world: World,
    ):
        self.lr, self.own, self.world = lr, own, world
        self.offloaded, dtype = settings.offload in ("optimizer", "all"), DTYPES[settings.precision]
        self.master = placed(start[own], device, self.offloaded)
        apart = self.offloaded or len(self.master) < len(start) or dtype != torch.float32
        self._copy = start.to(device, dtype, copy=True) if apart else self.master
        weights = layout.views(self._copy)
        self.backbone = source.with_network(with_weights(source.network, weights))
        self.optimizer = Adam(self.master, lr, device, self.offloaded)
        limit = 1 if settings.nonfinite == "stop" else NONFINITE_LIMIT
        self.guard = UpdateGuard(device, settings.precision, limit)
        self._parameters = own_weights(dict(self.backbone.network.named_parameters()))
        self._hooks: list[torch.utils.hooks.RemovableHandle] = []

    def enable_grad(self, gradient: Gradient) -> None:
        """Set `gradient` to zero and let backward add to it."""
        gradient.parameters.zero_()
        for name, parameter in self._parameters.items():
            parameter.requires_grad_(True)
            if parameter.dtype == torch.float32:
                parameter.grad = gradient.views[name]  # backward adds in place
            self._hooks.append(parameter.register_post_accumulate_grad_hook(partial(gradient.take, name)))

    def freeze(self) -> None:
        """Freeze the network again."""
        for parameter in self._parameters.values():
            parameter.requires_grad_(False)
            parameter.grad = None
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()

    def update(self, gradient: Gradient, loss: Tensor, lr: float, iteration: int) -> Tensor:
        """Apply the gradient unless it or the loss is not finite; return the gradient's norm."""
        if self.guard.scaled:
            gradient.parameters.div_(self.guard.scale)
        size = norm(gradient.parameters)
        skip = self.guard.should_skip(loss, size, iteration)
        self.optimizer.lr = lr
        self.optimizer.step(gradient.parameters[self.own], skip)
        self.refresh()
        return size

    @torch.no_grad()
    def align(self, other: "TrainedNetwork", r: float) -> None:
        """Move the float32 weights towards another network's, (1 - r) psi + r theta.

        Of the fake score to the generator: SenseFlow's implicit distribution alignment (arXiv 2506.00523).
        """
        device = self._copy.device
        for rows, (weights,) in on_device(device, self.offloaded, self.master):
            weights.lerp_(other.master[rows].to(device), r)
        self.refresh()

    def refresh(self) -> None:
        """Copy the float32 weights to the network, all-gathered if sharded."""
        if self._copy is self.master:
            return
        self._copy[self.own].copy_(self.master)
        if len(self.master) < len(self._copy):
            self.world.all_gather_(self._copy)

"""A trained network: float32 weights, their gradient and optimizer, and the network that computes, in its own precision."""

import copy
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..method import Denoiser
from .flat import Layout, norm
from .optimizer import Adam
from .precision import DTYPES, Guard

if TYPE_CHECKING:
    from ..config import Distill

METRICS = 8  # places for an iteration's metrics


class Gradient:
    """One float32 gradient and the metrics that go with it, in a single vector: what processes sum. Both students use it in turn.

    Attributes:
        parameters, metrics: parts of the vector `all`.
    """

    def __init__(self, layout: Layout, device: torch.device):
        self.all = torch.zeros(layout.size + METRICS, device=device)
        self.parameters, self.metrics = self.all[: layout.size], self.all[layout.size :]
        self.views = layout.views(self.parameters)


class Student:
    """The fake score or the generator. It starts from the teacher's weights.

    Attributes:
        network: the Denoiser that computes. Its parameters are views of `master`, or of a 16-bit copy of it.
        master: the float32 weights, a vector.
        lr: learning rate at the start of the run.
    """

    def __init__(self, teacher: Denoiser, layout: Layout, settings: "Distill", lr: float):
        self.network, self.lr = copy.deepcopy(teacher), lr
        self.master = layout.gather(self.network.unet)
        dtype = DTYPES[settings.precision]
        self._copy = self.master if dtype == torch.float32 else self.master.to(dtype)
        layout.bind(self.network.unet, self._copy)
        self.optimizer = Adam(self.master, settings, lr)
        limit = 1 if settings.nonfinite == "stop" else settings.nonfinite_limit
        self.guard = Guard(self.master.device, settings.precision, limit)
        self._parameters = dict(self.network.unet.named_parameters())
        self._hooks: list[torch.utils.hooks.RemovableHandle] = []

    def open(self, gradient: Gradient) -> None:
        """Let backward add to `gradient`, emptied first."""
        gradient.all.zero_()
        self.network.requires_grad_(True)
        for name, parameter in self._parameters.items():
            view = gradient.views[name]
            if self._copy is self.master:
                parameter.grad = view  # backward adds in place
            else:
                # each 16-bit gradient goes into the float32 sum as soon as it is there, and is freed
                self._hooks.append(parameter.register_post_accumulate_grad_hook(lambda p, view=view: _move(p, view)))

    def close(self) -> None:
        """Freeze the network again."""
        self.network.requires_grad_(False)
        for parameter in self._parameters.values():
            parameter.grad = None
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()

    def update(self, gradient: Gradient, loss: Tensor, lr: float, iteration: int) -> Tensor:
        """Apply the gradient unless something is not finite; return the gradient's norm."""
        if self.guard.scaled:
            gradient.parameters.div_(self.guard.scale)
        size = norm(gradient.parameters)
        skip = self.guard.judge(loss, size, iteration)
        self.optimizer.lr = lr
        self.optimizer.step(gradient.parameters, skip)
        self.refresh()
        return size

    def refresh(self) -> None:
        """Bring the 16-bit copy up to date with the float32 weights."""
        if self._copy is not self.master:
            self._copy.copy_(self.master)


def _move(parameter: Tensor, total: Tensor) -> None:
    total.add_(parameter.grad)
    parameter.grad = None

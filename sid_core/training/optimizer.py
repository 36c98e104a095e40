"""Apply Adam to one float32 vector, without storing the first moment if beta1 = 0, as published."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.optim.adam import adam

from .flat import on_device

if TYPE_CHECKING:
    from ..config import Distill


def learning_rate(settings: "Distill", base: float, nimg: int) -> float:
    """Return the learning rate after `nimg` images: from `base`, linearly to `base` * lr_final / lr at the end."""
    if settings.lr_final is None:
        return base
    return base * (1.0 + (settings.lr_final / settings.lr - 1) * min(nimg / (1000 * settings.train_kimg), 1.0))


class Adam:
    """torch's fused Adam (AdamW where weight_decay is above 0) on the vector `parameters`.

    Args:
        offloaded: the vectors are in host memory and are updated on the GPU in slices, with equal results.

    Attributes:
        lr: learning rate of the next step.
        steps: updates made, without skipped ones; a float32 tensor () on the device.
        second: running mean of squared gradients.
        first: running mean of gradients; None if beta1 = 0.
    """

    def __init__(
        self, parameters: Tensor, settings: "Distill", lr: float, device: torch.device, offloaded: bool = False
    ):
        self.parameters, self.settings, self.lr, self.offloaded = parameters, settings, lr, offloaded
        self.steps = torch.zeros((), device=device)
        self.second, self.first = self._zeros(), self._zeros() if settings.adam_beta1 else None

    def _zeros(self) -> Tensor:
        return torch.zeros_like(self.parameters, pin_memory=self.parameters.is_pinned())

    def step(self, gradient: Tensor, skip: Tensor) -> None:
        """Update the parameters.

        Args:
            gradient: float32, on the device; not changed.
            skip: float32 tensor (); 1 leaves everything unchanged.
        """
        s, before = self.settings, self.steps.clone()
        vectors = [self.parameters, self.second] + ([] if self.first is None else [self.first])
        for rows, (parameters, second, *first) in on_device(gradient.device, self.offloaded, *vectors):
            adam(
                [parameters],
                [gradient[rows]],
                # beta1 = 0: the first moment is the gradient, which the kernel reads before it writes
                first or [gradient[rows]],
                [second],
                [],
                [self.steps.copy_(before)],
                fused=True,
                found_inf=skip,
                decoupled_weight_decay=True,
                amsgrad=False,
                beta1=s.adam_beta1,
                beta2=s.adam_beta2,
                lr=self.lr,
                weight_decay=s.weight_decay,
                eps=s.adam_eps,
                maximize=False,
            )

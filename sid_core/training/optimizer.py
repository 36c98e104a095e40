"""Apply Adam to one float32 vector. With beta1 = 0, as published, there is no first moment to store."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.optim.adam import adam

from .flat import on_device

if TYPE_CHECKING:
    from ..config import Distill

BETA2, EPS = 0.999, 1e-8  # as published


def learning_rate(settings: "Distill", base: float, nimg: int) -> float:
    """Return the learning rate after `nimg` images: from `base`, linearly to `base` * lr_final / lr at the end."""
    final = 1.0 if settings.lr_final is None else settings.lr_final / settings.lr
    return base * (1.0 + (final - 1) * min(nimg / (1000 * settings.train_kimg), 1.0))


class Adam:
    """torch's fused Adam on the vector `parameters`.

    Args:
        offloaded: the vectors are in host memory and are updated on the GPU in slices, with equal results.

    Attributes:
        lr: learning rate of the next step.
        steps: updates made, without skipped ones; a float32 tensor () on the device.
        second: running mean of squared gradients.
    """

    def __init__(self, parameters: Tensor, lr: float, device: torch.device, offloaded: bool = False):
        self.parameters, self.lr, self.offloaded = parameters, lr, offloaded
        self.steps = torch.zeros((), device=device)
        self.second = torch.zeros_like(parameters, pin_memory=parameters.is_pinned())

    def step(self, gradient: Tensor, skip: Tensor) -> None:
        """Update the parameters.

        Args:
            gradient: float32, on the device; not changed.
            skip: float32 tensor (); 1 leaves everything unchanged.
        """
        before = self.steps.clone()
        for rows, (parameters, second) in on_device(gradient.device, self.offloaded, self.parameters, self.second):
            adam(
                [parameters],
                [gradient[rows]],
                [gradient[rows]],  # with beta1 = 0 the first moment, which the kernel reads before it writes
                [second],
                [],
                [self.steps.copy_(before)],
                fused=True,
                found_inf=skip,
                decoupled_weight_decay=True,
                amsgrad=False,
                beta1=0.0,
                beta2=BETA2,
                lr=self.lr,
                weight_decay=0.0,
                eps=EPS,
                maximize=False,
            )

"""Adam on one float32 vector. With beta1 = 0, as published, the first moment is the gradient itself and is not stored."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.optim.adam import adam

if TYPE_CHECKING:
    from ..config import Distill


class Adam:
    """torch's fused Adam (AdamW where weight_decay is above 0) on the vector `parameters`.

    Attributes:
        lr: learning rate of the next step.
        steps: updates made, a float32 tensor on the device; skipped ones do not count.
        second: running mean of squared gradients. `first`: of gradients, None with beta1 = 0.
    """

    def __init__(self, parameters: Tensor, settings: "Distill", lr: float):
        self.parameters, self.settings, self.lr = parameters, settings, lr
        self.steps = torch.zeros((), device=parameters.device)
        self.second = torch.zeros_like(parameters)
        self.first = torch.zeros_like(parameters) if settings.adam_beta1 else None

    def step(self, gradient: Tensor, skip: Tensor) -> None:
        """One update; where `skip`, a float32 tensor (), is 1, nothing changes. `gradient` is left as it was."""
        s = self.settings
        # the kernel reads a gradient before it writes the first moment, which with beta1 = 0 is that gradient again
        first = gradient if self.first is None else self.first
        adam(
            [self.parameters],
            [gradient],
            [first],
            [self.second],
            [],
            [self.steps],
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

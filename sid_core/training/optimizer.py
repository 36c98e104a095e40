"""Adam on one float32 vector. With beta1 = 0, as published, the first moment is the gradient itself and is not stored."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.optim.adam import adam

from .flat import on_device

if TYPE_CHECKING:
    from ..config import Distill


def learning_rate(settings: "Distill", base: float, nimg: int) -> float:
    """Return the learning rate after `nimg` images: `base` of a network, decaying linearly by lr_final / lr over the run."""
    if settings.lr_final is None:
        return base
    return base * (1.0 + (settings.lr_final / settings.lr - 1) * min(nimg / (1000 * settings.train_kimg), 1.0))


class Adam:
    """torch's fused Adam (AdamW where weight_decay is above 0) on the vector `parameters`.

    Args:
        offloaded: the vectors live in the host's memory; a GPU fetches, updates and returns them in parts, with the same result.

    Attributes:
        lr: learning rate of the next step.
        steps: updates made, a float32 tensor on the device; skipped ones do not count.
        second: running mean of squared gradients. `first`: of gradients, None with beta1 = 0.
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
        """One update; where `skip`, a float32 tensor (), is 1, nothing changes. `gradient`, on the device, is left as it was."""
        s, before = self.settings, self.steps.clone()
        vectors = [self.parameters, self.second] + ([] if self.first is None else [self.first])
        for rows, (parameters, second, *first) in on_device(gradient.device, self.offloaded, *vectors):
            adam(
                [parameters],
                [gradient[rows]],
                # the kernel reads a gradient before it writes the first moment, which with beta1 = 0 is that gradient again
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

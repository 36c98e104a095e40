"""In which arithmetic and with which kernels a network computes, and what is done about numbers that are not finite.

Weights, gradients and losses are float32 always: bare 16-bit weights lose most updates at lr 1e-6 (half an ulp of bfloat16 at
0.03 is 6e-5). In `bfloat16` and `float16` the networks compute on copies that are refreshed after every update.
"""

import os

import torch
from torch import Tensor, nn

from ..method import DTYPES

# of the loss in float16, as in torch.amp.GradScaler but for the start: these losses are sums over a latent
FIRST_SCALE, GROWTH_INTERVAL, LARGEST_SCALE = 2.0**8, 1000, 2.0**24


def set_arithmetic(precision: str) -> None:
    """Let float32 products use the tensor cores' tf32 or not. cuDNN's default is to use it."""
    torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
    torch.backends.cudnn.allow_tf32 = precision == "tf32"


def set_determinism(wanted: bool) -> None:
    """Let a GPU's libraries choose kernels that give the same bits at every run, or the fastest; before anything computes there.

    What has no such kernel raises a RuntimeError then. With `warn_only` torch would not ask for attention's either.
    """
    if not torch.cuda.is_available():
        return
    if wanted:
        os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"  # read when cuBLAS starts
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = wanted, False
    torch.use_deterministic_algorithms(wanted)  # compiled blocks and NCCL follow
    torch.utils.deterministic.fill_uninitialized_memory = False  # a pass over all new memory


def set_memory_format(network: nn.Module, precision: str, device: torch.device) -> None:
    """Order weights as cuDNN's 16-bit convolutions want them: they would transpose in and out of every one. A CPU gains nothing."""
    if device.type == "cuda" and DTYPES[precision] != torch.float32:
        network.to(memory_format=torch.channels_last)


class Guard:
    """Decides on the device which updates are applied, counts the others, and keeps float16's loss scale.

    The host reads the counts when it logs; an update with a non-finite number in it is never applied, however late they are read.

    Attributes:
        limit: non-finite updates in a row that end the run.
        scale: factor of the loss before backward; 1 but in float16. Where it is above 1, a gradient that overflows halves it.
    """

    SAVED = ("total", "in_row", "scale", "since_growth")

    def __init__(self, device: torch.device, precision: str, limit: int):
        self.scaled, self.limit = precision == "float16", limit
        first = FIRST_SCALE if self.scaled else 1.0
        start = {"total": 0.0, "in_row": 0.0, "scale": first, "since_growth": 0.0, "iteration": -1.0}
        start |= {"loss": 0.0, "norm": 0.0}  # of the iteration that reached the limit
        self._values = {name: torch.tensor(value, device=device) for name, value in start.items()}

    @property
    def scale(self) -> Tensor | float:
        return self._values["scale"] if self.scaled else 1.0

    def judge(self, loss: Tensor, norm: Tensor, iteration: int) -> Tensor:
        """1 where this update must be skipped, else 0, a float32 tensor (); `norm` is that of the unscaled gradient."""
        v = self._values
        skip = 1 - (torch.isfinite(loss) & torch.isfinite(norm)).float()
        fault = skip
        if self.scaled:
            overflow = skip * torch.isfinite(loss) * (v["scale"] > 1)
            fault = skip - overflow
            v["since_growth"] = (v["since_growth"] + 1) * (1 - skip)
            grown = v["since_growth"] >= GROWTH_INTERVAL
            v["scale"] = (v["scale"] * (1 - 0.5 * overflow) * (1.0 + grown)).clamp(1, LARGEST_SCALE)
            v["since_growth"] = v["since_growth"] * ~grown
        v["total"] = v["total"] + skip
        v["in_row"] = (v["in_row"] + fault) * skip  # an overflow neither counts nor ends the row
        reached = (v["in_row"] >= self.limit) & (v["iteration"] < 0)
        for name, value in (("iteration", iteration), ("loss", loss), ("norm", norm)):
            v[name] = torch.where(reached, value, v[name])
        return skip

    @property
    def skipped(self) -> int:
        """Updates skipped in all; waits for the device."""
        return int(self._values["total"].item())

    def stopped(self) -> tuple[int, float, float] | None:
        """(iteration, loss, gradient norm) at which the limit was reached, or None; waits for the device."""
        iteration, loss, norm = (self._values[name].item() for name in ("iteration", "loss", "norm"))
        return (int(iteration), loss, norm) if iteration >= 0 else None

    def saved(self) -> dict[str, float]:
        """What a saved state needs of it."""
        return {name: self._values[name].item() for name in self.SAVED}

    def restore(self, saved: dict[str, float]) -> None:
        for name in self.SAVED:
            self._values[name].fill_(saved[name])

"""Set dtype, kernels and memory format of a network, and skip updates that are not finite.

Weights, gradients and losses are always float32: 16-bit weights would lose most updates at lr 1e-6 (half an ulp of
bfloat16 at 0.03 is 6e-5). With `bfloat16` and `float16` networks compute on copies, refreshed after every update.
"""

import os

import torch
from torch import Tensor

# loss scale of float16, as in torch.amp.GradScaler but for a lower start: these losses are sums over a latent
FIRST_SCALE, GROWTH_INTERVAL, LARGEST_SCALE = 2.0**8, 1000, 2.0**24


def set_arithmetic(precision: str) -> None:
    """Enable tf32 in float32 products, or disable it: cuDNN enables it by default."""
    torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
    torch.backends.cudnn.allow_tf32 = precision == "tf32"


def set_determinism(wanted: bool) -> None:
    """Choose deterministic kernels of a GPU, or the fastest; call it before the first operation there.

    Operations without a deterministic kernel then raise a RuntimeError. With torch's `warn_only`, attention would
    not use its deterministic kernel either.
    """
    if not torch.cuda.is_available():
        return
    if wanted:
        os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"  # read once, when cuBLAS starts
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = wanted, False
    torch.use_deterministic_algorithms(wanted)  # compiled blocks and NCCL follow
    torch.utils.deterministic.fill_uninitialized_memory = False  # would write to all new memory


class UpdateGuard:
    """Skips non-finite updates, counts them, and adapts the loss scale of float16, all on the device.

    The host reads the counts only when it logs. A non-finite update is never applied, however late they are read.

    Attributes:
        limit: consecutive non-finite updates that end the run.
        scale: factor of the loss before backward, 1 except in float16. An overflow halves it while it is above 1.
    """

    SAVED = ("total", "in_row", "scale", "since_growth")

    def __init__(self, device: torch.device, precision: str, limit: int):
        self.scaled, self.limit = precision == "float16", limit
        first = FIRST_SCALE if self.scaled else 1.0
        start = {"total": 0.0, "in_row": 0.0, "scale": first, "since_growth": 0.0, "iteration": -1.0}
        start |= {"loss": 0.0, "norm": 0.0}  # values of the iteration that reached the limit
        self._values = {name: torch.tensor(value, device=device) for name, value in start.items()}

    @property
    def scale(self) -> Tensor | float:
        return self._values["scale"] if self.scaled else 1.0

    def should_skip(self, loss: Tensor, norm: Tensor, iteration: int) -> Tensor:
        """Return 1 if this update must be skipped, else 0, as a float32 tensor ().

        Args:
            norm: of the unscaled gradient.
        """
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
        v["in_row"] = (v["in_row"] + fault) * skip  # an overflow neither extends nor resets the count
        reached = (v["in_row"] >= self.limit) & (v["iteration"] < 0)
        for name, value in (("iteration", iteration), ("loss", loss), ("norm", norm)):
            v[name] = torch.where(reached, value, v[name])
        return skip

    @property
    def skipped(self) -> int:
        """Return the number of skipped updates; synchronises the device."""
        return int(self._values["total"].item())

    def stopped(self) -> tuple[int, float, float] | None:
        """Return (iteration, loss, gradient norm) that reached the limit, or None; synchronises the device."""
        iteration, loss, norm = (self._values[name].item() for name in ("iteration", "loss", "norm"))
        return (int(iteration), loss, norm) if iteration >= 0 else None

    def saved(self) -> dict[str, float]:
        """Return the values that a checkpoint stores."""
        return {name: self._values[name].item() for name in self.SAVED}

    def restore(self, saved: dict[str, float]) -> None:
        for name in self.SAVED:
            self._values[name].fill_(saved[name])

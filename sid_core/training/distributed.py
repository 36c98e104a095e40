"""One run on several processes, a GPU each, as torchrun starts them.

Every process draws the whole batch and computes its own rows; gradients and metrics are summed in one vector, so that all
processes decide everything on the same numbers, and a run's result depends on their count by rounding alone. Process 0 reads
and writes files; of a state all write some, to a folder that they share.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from ..cluster.machine import device
from ..errors import UserError

# a dead process is noticed at once by its closed connection; this is for a stuck one. The others wait while the first looks at samples
# of held-out captions, several thousand perhaps, and until all have written their share of a state
TIMEOUT = timedelta(hours=2)


class PeerLost(UserError):
    """Another process of this run ended."""


@dataclass(frozen=True)
class World:
    """The processes of a run, by default this one alone."""

    rank: int = 0
    size: int = 1

    def parts(self, batch: int, micro_batch: int) -> list[slice]:
        """The rows of the batch that this process computes, in micro-batches.

        Raises:
            UserError: the batch cannot be divided.
        """
        share = batch // self.size
        part = min(micro_batch, share)
        if batch % self.size or share % part:
            raise UserError(
                f"distill.batch={batch}: {self.size} processes cannot share it in micro-batches of {micro_batch}; "
                f"expected a multiple of {self.size} times distill.micro_batch"
            )
        first = self.rank * share
        return [slice(start, start + part) for start in range(first, first + share, part)]

    def shard(self, size: int) -> slice:
        """This process's part of a vector, of which each keeps an equal one."""
        part = size // self.size
        return slice(self.rank * part, (self.rank + 1) * part)

    def all_reduce_(self, vector: Tensor) -> None:
        """Sum `vector` over all processes, in place."""
        self._call(dist.all_reduce, vector)

    def all_gather_(self, vector: Tensor) -> None:
        """Give all processes each one's `shard` of the vector, in place."""
        whole = vector.view(torch.uint8)  # gloo does not know every type
        self._call(dist.all_gather_into_tensor, whole, whole[self.shard(len(whole))].clone())

    def largest(self, number: int) -> int:
        """The largest of the processes' numbers; goes over the host, a GPU's work is not waited for."""
        value = torch.tensor(number)
        self._call(dist.all_reduce, value, dist.ReduceOp.MAX)
        return int(value)

    def broadcast_(self, tensor: Tensor) -> None:
        """Give all processes what process 0 has, in place."""
        self._call(dist.broadcast, tensor, 0)

    def broadcast_text(self, text: str | None) -> str | None:
        """Process 0's text, or None, on all processes."""
        if self.size == 1:
            return text
        data = torch.tensor(list((text or "").encode()), dtype=torch.uint8)
        length = torch.tensor(-1 if text is None else len(data))
        self.broadcast_(length)
        if length < 0:
            return None
        data.resize_(int(length))
        self.broadcast_(data)
        return bytes(data.tolist()).decode()

    def barrier(self) -> None:
        """Wait until all are here, or one has ended. The first that ends with an error has the others killed, who may have to write yet."""
        with suppress(PeerLost):
            self.largest(0)

    def begin_all_reduce_(self, vector: Tensor) -> Callable[[], None]:
        """Begin to sum `vector` in place while other work goes on; what is returned waits for it."""
        work = self._call(dist.all_reduce, vector, dist.ReduceOp.SUM, None, True)
        return lambda: self._call(work.wait)

    def _call(self, collective: Callable, *args) -> dist.Work | None:
        if self.size == 1:
            return None
        try:
            return collective(*args)
        except RuntimeError as error:
            raise PeerLost(
                f"another process of this run ended ({' '.join(str(error).split())[:200]}); "
                "its own message tells why. Running again continues from the newest saved state"
            ) from None


class OverlappedAllReduce:
    """Sums a gradient over all processes, each of its blocks as soon as backward is done with it and those before it have begun.

    The order is fixed, as all processes must begin the same sums in the same one.

    Args:
        blocks: parts of the gradient in the order of backward, and how many parameters each holds.
    """

    def __init__(self, world: World, blocks: list[tuple[Tensor, int]]):
        self.world, self.blocks = world, blocks
        self._missing: list[int] = []  # parameters of each block; empty while nothing is to be summed yet
        self._waits: list[Callable[[], None]] = []

    def begin(self) -> None:
        """Before the last backward."""
        self._missing, self._waits = [number for _, number in self.blocks], []

    def arrived(self, block: int) -> None:
        """A parameter's gradient is complete."""
        if self._missing:
            self._missing[block] -= 1
            while len(self._waits) < len(self.blocks) and not self._missing[len(self._waits)]:
                self._begin_next()

    def finish(self) -> None:
        """After the last backward: sum what is left, of parameters without gradient, and wait."""
        while len(self._waits) < len(self.blocks):
            self._begin_next()
        for wait in self._waits:
            wait()
        self._missing = []

    def _begin_next(self) -> None:
        self._waits.append(self.world.begin_all_reduce_(self.blocks[len(self._waits)][0]))


def is_first() -> bool:
    """Whether this process reads and writes files: process 0, or the only one."""
    return int(os.environ.get("RANK", 0)) == 0


@contextmanager
def connected() -> Iterator[tuple[World, torch.device]]:
    """Join the other processes, where torchrun's variables name any; yield them and this process's device."""
    size, kind = int(os.environ.get("WORLD_SIZE", 1)), device()
    if kind == "cuda":
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
    if size == 1:
        yield World(), torch.device(kind)
        return
    # both at once: small decisions go over the host and wait for no GPU
    dist.init_process_group("cpu:gloo,cuda:nccl" if kind == "cuda" else "gloo", timeout=TIMEOUT)
    try:
        yield World(dist.get_rank(), size), torch.device(kind)
    finally:
        dist.destroy_process_group()

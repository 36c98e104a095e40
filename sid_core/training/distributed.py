"""Run one distillation on several ranks, one GPU each, started by torchrun.

Every rank draws the whole batch and computes its own rows. Gradients and metrics are all-reduced, so all ranks decide
on equal numbers, and the world size changes a result by rounding only. Rank 0 reads and writes files; the files of a
checkpoint are written by all ranks, to a shared folder.
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

# for a rank that hangs: one that exits closes its connection. Ranks also wait while rank 0 scores samples of held-out
# prompts, perhaps several thousand, and until all files of a checkpoint are written
TIMEOUT = timedelta(hours=2)


class PeerLost(UserError):
    """Another rank of this run exited."""


@dataclass(frozen=True)
class World:
    """Rank and world size of this process, with the collectives; by default a single process."""

    rank: int = 0
    size: int = 1

    def micro_batches(self, batch: int, micro_batch: int) -> list[slice]:
        """Return the rows of the batch that this rank computes, in micro-batches.

        Raises:
            UserError: the batch cannot be divided.
        """
        per_rank = batch // self.size
        size = min(micro_batch, per_rank)
        if batch % self.size or per_rank % size:
            raise UserError(
                f"distill.batch={batch}: expected a multiple of {self.size} (processes) times "
                f"distill.micro_batch={micro_batch}"
            )
        first = self.rank * per_rank
        return [slice(start, start + size) for start in range(first, first + per_rank, size)]

    def shard_slice(self, size: int) -> slice:
        """Return the slice of a vector of `size` elements that is this rank's shard."""
        part = size // self.size
        return slice(self.rank * part, (self.rank + 1) * part)

    def all_reduce_(self, vector: Tensor) -> None:
        """Sum `vector` over all ranks, in place."""
        self._call(dist.all_reduce, vector)

    def all_gather_(self, vector: Tensor) -> None:
        """Fill `vector` with the shards of all ranks, in place."""
        whole = vector.view(torch.uint8)  # gloo does not support every dtype
        self._call(dist.all_gather_into_tensor, whole, whole[self.shard_slice(len(whole))].clone())

    def all_reduce_max(self, number: int) -> int:
        """Return the largest number of all ranks; on the host, without synchronising a GPU."""
        value = torch.tensor(number)
        self._call(dist.all_reduce, value, dist.ReduceOp.MAX)
        return int(value)

    def broadcast_(self, tensor: Tensor) -> None:
        """Copy the tensor of rank 0 to all ranks, in place."""
        self._call(dist.broadcast, tensor, 0)

    def broadcast_text(self, text: str | None) -> str | None:
        """Return the text, or None, of rank 0 on all ranks."""
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
        """Block until every rank arrives or one exits.

        torchrun kills all ranks once one exits with an error: without this, others could not finish their writes.
        """
        with suppress(PeerLost):
            self.all_reduce_max(0)

    def all_reduce_async_(self, vector: Tensor) -> Callable[[], None]:
        """Start to sum `vector` over all ranks, in place; return a function that waits for the end."""
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
                "its own message has the cause. Fix: run again, which resumes from the newest checkpoint"
            ) from None


class OverlappedAllReduce:
    """All-reduces a gradient block by block during backward.

    A block starts once its gradients are complete and all blocks before it have started: all ranks must start the
    same collectives in the same order.

    Args:
        blocks: slices of the gradient in the order of backward, with their numbers of parameters.
    """

    def __init__(self, world: World, blocks: list[tuple[Tensor, int]]):
        self.world, self.blocks = world, blocks
        self._missing: list[int] = []  # incomplete parameters of each block; empty outside the last backward
        self._waits: list[Callable[[], None]] = []

    def begin(self) -> None:
        """Prepare for the last backward."""
        self._missing, self._waits = [number for _, number in self.blocks], []

    def arrived(self, block: int) -> None:
        """Count a parameter of `block` whose gradient is complete."""
        if self._missing:
            self._missing[block] -= 1
            while len(self._waits) < len(self.blocks) and not self._missing[len(self._waits)]:
                self._begin_next()

    def finish(self) -> None:
        """Start the blocks left over, whose parameters have no gradient, and wait for all."""
        while len(self._waits) < len(self.blocks):
            self._begin_next()
        for wait in self._waits:
            wait()
        self._missing = []

    def _begin_next(self) -> None:
        self._waits.append(self.world.all_reduce_async_(self.blocks[len(self._waits)][0]))


def is_first() -> bool:
    """Return whether this process is rank 0."""
    return int(os.environ.get("RANK", 0)) == 0


@contextmanager
def connected() -> Iterator[tuple[World, torch.device]]:
    """Connect the ranks that torchrun's variables name, if any; yield the World and this rank's device."""
    size, kind = int(os.environ.get("WORLD_SIZE", 1)), device()
    if kind == "cuda":
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
    if size == 1:
        yield World(), torch.device(kind)
        return
    # both backends: all_reduce_max runs on the host, without synchronising a GPU
    dist.init_process_group("cpu:gloo,cuda:nccl" if kind == "cuda" else "gloo", timeout=TIMEOUT)
    try:
        yield World(dist.get_rank(), size), torch.device(kind)
    finally:
        dist.destroy_process_group()

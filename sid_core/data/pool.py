"""Run CPU work on images (encoding, decoding, resizing, hashing) in threads while the networks compute.

PIL, zlib and hashlib release the GIL, so threads are as parallel as processes, without a second set of imports and without
sending a megabyte an image through a pipe (docs/performance.md has measurements of both).
"""

import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_order(function: Callable[[Item], Result], items: Iterable[Item], workers: int, ahead: int) -> Iterator[Result]:
    """Yield function(item) for every item in order, computed by `workers` threads, or by the caller if 1.

    Items are taken from their iterable while at most `ahead` results wait, so memory does not grow with their number. The
    first error is raised at its position in the order and ends the iteration.
    """
    if workers == 1:
        yield from map(function, items)
        return
    import torch  # not above: every call of Snakemake imports this module, and torch takes a second

    # torch's own threads slow down small tensors
    pool = ThreadPoolExecutor(workers, "images", initializer=torch.set_num_threads, initargs=(1,))
    waiting: deque[Future[Result]] = deque()
    try:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def batches(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """Yield lists of `size` items; the last one may be shorter."""
    rest = iter(items)
    while batch := list(itertools.islice(rest, size)):
        yield batch

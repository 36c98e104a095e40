"""The CPU's work on images, beside the networks: encoding, decoding, resizing and hashing, in threads.

PIL, zlib and hashlib let other threads run while they work, so threads do what processes would, without a second set of
imports and without sending a megabyte an image through a pipe (docs/performance.md has both measured).
"""

import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_order(function: Callable[[Item], Result], items: Iterable[Item], workers: int, ahead: int) -> Iterator[Result]:
    """Yield function(item) of every item in their order, computed by `workers` threads; by the caller itself where it is 1.

    Items are taken from their iterable as long as at most `ahead` results wait, so memory does not grow with their number. The
    first error ends it, in its place.
    """
    if workers == 1:
        yield from map(function, items)
        return
    # a thread that starts threads of torch's own for every small tensor would be slower, not faster
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
    """Yield lists of `size` items, the last one shorter."""
    rest = iter(items)
    while batch := list(itertools.islice(rest, size)):
        yield batch

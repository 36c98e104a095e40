import threading
import time

import pytest
import torch

from sid_core.data.pool import batches, in_order


def late_first(n: int) -> int:
    """Return the item after a delay that is longest for the first items."""
    time.sleep(0.02 / (n + 1))
    return n * n


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_in_order_keeps_the_order(workers):
    assert list(in_order(late_first, range(30), workers, ahead=8)) == [n * n for n in range(30)]


@pytest.mark.parametrize("workers", [1, 3])
def test_in_order_takes_few_items_ahead(workers):
    taken, done = 0, 0

    def items():
        nonlocal taken
        for n in range(100):
            taken += 1
            yield n

    for _ in in_order(lambda n: n, items(), workers, ahead=5):
        assert taken - done <= 6
        done += 1
    assert done == 100


@pytest.mark.parametrize("workers", [1, 3])
def test_in_order_with_an_error_raises_at_its_place(workers):
    done = []

    def fails_at_7(n: int) -> int:
        if n == 7:
            raise ValueError("seven")
        return n

    with pytest.raises(ValueError, match="seven"):
        done.extend(in_order(fails_at_7, range(1000), workers, ahead=4))
    results = in_order(fails_at_7, range(1000), workers, ahead=4)
    assert [next(results) for _ in range(7)] == list(range(7))
    with pytest.raises(ValueError, match="seven"):
        next(results)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("images")]


def test_in_order_works_while_the_caller_is_busy():
    # Threads pack images while the network makes the next ones.
    began, release = threading.Event(), threading.Event()

    def function(n: int) -> int:
        began.set()
        assert release.wait(10)
        return n

    def items():
        yield 0
        assert began.wait(10), "the first item is in work before the second is made"
        release.set()
        yield 1

    assert list(in_order(function, items(), 2, ahead=2)) == [0, 1]


def test_in_order_uses_one_torch_thread_in_each_worker():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert set(in_order(lambda _: torch.get_num_threads(), range(8), 3, ahead=8)) == {1}
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_batches_end_with_the_rest():
    assert list(batches(range(7), 3)) == [[0, 1, 2], [3, 4, 5], [6]]
    assert list(batches([], 3)) == []

"""The cores of this process: several pieces of work side by side, each on one core, or one piece on all of them.

A float sum that several cores share is cut where the cores are, so its last bits depend on how many there are. Work
that stays on one core gives the same bits wherever it runs: on any of them, beside any number of others.
"""

import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from typing import TypeVar

import torch

In = TypeVar("In")
Out = TypeVar("Out")


def available_cores() -> int:
    """OMP_NUM_THREADS where it is set, else all cores that this process may use."""
    return int(os.environ.get("OMP_NUM_THREADS", len(os.sched_getaffinity(0))))


@contextmanager
def settings_kept() -> Iterator[None]:
    """What a run sets in torch for this whole process is as before after the block: a notebook's own code follows."""
    num_threads, random_state = torch.get_num_threads(), torch.get_rng_state()
    try:
        yield
    finally:
        torch.set_rng_state(random_state)
        torch.set_num_threads(num_threads)


class CpuPool:
    """Runs a function on many items.

    Args:
        one_core_each: each item on one core, several at a time; else one after the other, each on all cores.
        num_cores: how many.
    """

    def __init__(self, one_core_each: bool, num_cores: int | None = None) -> None:
        self.num_cores = num_cores or available_cores()
        torch.set_num_threads(1 if one_core_each else self.num_cores)
        self._threads = None
        if one_core_each and self.num_cores > 1:
            self._threads = ThreadPoolExecutor(self.num_cores, initializer=torch.set_num_threads, initargs=(1,))

    @property
    def is_parallel(self) -> bool:
        """Whether items are computed side by side, by threads of this process."""
        return self._threads is not None

    def map(self, function: Callable[[In], Out], items: Iterable[In]) -> list[Out]:
        """The function's results in the order of the items. The calling thread is one of those that compute."""
        if self._threads is None:
            return [function(item) for item in items]
        remaining, taking, results = enumerate(items), threading.Lock(), dict[int, Out]()

        def compute() -> None:
            nonlocal remaining
            try:
                while True:
                    with taking:
                        i, item = next(remaining, (-1, None))
                    if i < 0:
                        return
                    results[i] = function(item)  # type: ignore[arg-type]
            except BaseException:
                remaining = enumerate(())  # the other threads need not go on
                raise

        others = [self._threads.submit(compute) for _ in range(self.num_cores - 1)]
        try:
            compute()
        finally:
            wait(others)
        for other in others:
            other.result()
        return [results[i] for i in range(len(results))]

    def ahead(self, function: Callable[[], Out]) -> Future[Out]:
        """Starts the function on a core of its own, of a pool that is parallel."""
        assert self._threads is not None
        return self._threads.submit(function)

    def stream(self, function: Callable[[In], Out], items: Iterable[In]) -> Iterator[Out]:
        """The function's results in the order of the items, of which only a few a core are taken ahead of them."""
        if self._threads is None:
            yield from map(function, items)
            return
        pending: deque[Future[Out]] = deque()
        for item in items:
            pending.append(self._threads.submit(function, item))
            if len(pending) > 2 * self.num_cores:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()

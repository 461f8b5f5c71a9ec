"""The exchange of a large network's gradients beside the backward pass that computes the rest of them.

It is for ranks that wait for a wire or for a GPU's copies. Processes on the cores of one machine would take these from
each other.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from functools import partial

import torch
from torch import nn

from cifarscale.distributed.all_reduce import AllReduce, Tensors
from cifarscale.distributed.group import Group
from cifarscale.distributed.tree import Tree

BUCKET_BYTES = 4 << 20
"""An exchange of fewer bytes is mostly waiting for its messages, whose number is that of the ranks' logarithm."""


def early_buckets(sizes: Sequence[int]) -> list[list[int]]:
    """Tensors in groups that are worth an exchange of their own, by their places, each ascending.

    They are taken from the last on, as a backward pass computes gradients. The first layers' are in none: when theirs
    are there, the pass is over.

    Args:
        sizes: of all tensors, in bytes.
    """
    buckets: list[list[int]] = []
    end, num_bytes = len(sizes), 0
    for place in reversed(range(len(sizes))):
        num_bytes += sizes[place]
        if num_bytes >= BUCKET_BYTES:
            buckets.append(list(range(place, end)))
            end, num_bytes = place, 0
    return buckets if end else buckets[:-1]


class Overlap:
    """Means over all ranks' microbatches of the gradients of a network's last layers.

    On every rank, the same buckets of gradients are exchanged in the same order, each as soon as the rank's last
    microbatch has them. Sums go along the tree as they do for all gradients at once, so the bits are the same whenever
    an exchange begins.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], group: Group, tree: Tree) -> None:
        self._parameters = parameters
        self._buckets = [
            (places, AllReduce([parameters[i] for i in places], group, tree))
            for places in early_buckets([parameter.nbytes for parameter in parameters])
        ]
        self._aside = Aside(parameters[0].device if parameters else torch.device("cpu"))
        self._started: list[Future[Tensors]] = []

    @contextmanager
    def beside(self, earlier: Sequence[Tensors]) -> Iterator[None]:
        """A block that computes the gradients of the rank's last microbatch; exchanges start within it.

        Args:
            earlier: the gradients of the rank's other microbatches.
        """
        found: dict[int, torch.Tensor] = {}

        def take(place: int, gradient: torch.Tensor) -> None:
            found[place] = gradient
            while (n := len(self._started)) < len(self._buckets) and found.keys() >= set(self._buckets[n][0]):
                self._start([*earlier, found])

        # Hooks of this block come after those that the network itself has set, and see what these make of a gradient.
        hooks = [
            self._parameters[place].register_hook(partial(take, place))  # type: ignore[no-untyped-call]
            for places, _ in self._buckets
            for place in places
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def means(self, gradients: Sequence[Tensors]) -> dict[int, torch.Tensor]:
        """The means of the buckets' gradients, by their places; they hold until the next ones.

        Args:
            gradients: all of each of the rank's microbatches.
        """
        while len(self._started) < len(self._buckets):
            self._start(gradients)
        started, self._started = self._started, []
        means: dict[int, torch.Tensor] = {}
        for (places, _), each in zip(self._buckets, started, strict=True):
            means.update(zip(places, each.result(), strict=True))
        self._aside.join()
        return means

    def _start(self, gradients: Sequence[Tensors | dict[int, torch.Tensor]]) -> None:
        """Starts the exchange of the next bucket."""
        places, all_reduce = self._buckets[len(self._started)]
        terms = [[each[i] for i in places] for each in gradients]
        self._started.append(self._aside.start(partial(all_reduce.mean, terms)))


class Aside:
    """Work that is done beside what the caller goes on with, in the order in which it was started.

    On a GPU it goes to a stream of its own, on a CPU to a thread, which does not keep a process that fails from ending.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream: torch.cuda.Stream | None = None
        self._last: Future[Tensors] | None = None

    def start(self, work: Callable[[], Tensors]) -> Future[Tensors]:
        """Starts work on what the caller has computed so far.

        Returns: what the work returns; on a GPU at once, to be used after `join`.
        """
        done: Future[Tensors] = Future()
        if self._device.type == "cuda":
            self._stream = self._stream or torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
            self._stream.wait_stream(torch.cuda.current_stream(self._device))
            with torch.cuda.stream(self._stream):
                done.set_result(work())
        else:
            threading.Thread(target=self._do, args=(work, self._last, done), daemon=True).start()
            self._last = done
        return done

    def join(self) -> None:
        """On a GPU, has what the caller starts from now on wait for the work."""
        if self._stream:
            torch.cuda.current_stream(self._device).wait_stream(self._stream)

    @staticmethod
    def _do(work: Callable[[], Tensors], before: Future[Tensors] | None, done: Future[Tensors]) -> None:
        try:
            torch.set_num_threads(1)
            if before:
                before.result()
            done.set_result(work())
        except BaseException as error:
            done.set_exception(error)

"""Ranks without processes: threads that meet in each collective."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any

import pytest
import torch

from cifarscale.distributed.group import Group, Transfers
from cifarscale.distributed.ranks import Ranks


class ThreadGroup(Group):
    """One of several ranks in this process.

    Attributes:
        sums: the tensors that it passed to `sum_`.
        sent_bytes: what it sent in `transfer`.
    """

    def __init__(self, ranks: Ranks, meeting: Barrier, shared: list[Any]) -> None:
        super().__init__(ranks)
        self.sums: list[torch.Tensor] = []
        self.sent_bytes = 0
        self._meeting, self._shared = meeting, shared

    def sum_(self, tensor: torch.Tensor) -> torch.Tensor:
        assert tensor.device.type == "cpu"
        self.sums.append(tensor.clone())
        self._shared[self.ranks.rank] = self.sums[-1]
        self._meeting.wait(60)
        tensor.copy_(torch.stack(self._shared).sum(0))
        self._meeting.wait(60)
        return tensor

    def of_all(self, value: Any) -> list[Any]:
        self._shared[self.ranks.rank] = value
        self._meeting.wait(60)
        values = list(self._shared)
        self._meeting.wait(60)
        return values

    def transfer(self, sent: Transfers, received: Transfers) -> None:
        assert all(tensor.device.type == "cpu" for tensors in sent.values() for tensor in tensors)
        self.sent_bytes += sum(tensor.nbytes for tensors in sent.values() for tensor in tensors)
        of_ranks = self.of_all({other: [each.clone() for each in tensors] for other, tensors in sent.items()})
        for other, tensors in received.items():
            for tensor, theirs in zip(tensors, of_ranks[other].get(self.ranks.rank, []), strict=True):
                tensor.copy_(theirs)


@pytest.fixture
def over_ranks() -> Callable[[int, Callable[[ThreadGroup], Any]], list[Any]]:
    """over_ranks(world_size, function): what `function(group)` returns on each rank."""

    def over_ranks(world_size: int, function: Callable[[ThreadGroup], Any]) -> list[Any]:
        meeting = Barrier(world_size)
        shared: list[Any] = [None] * world_size
        groups = [ThreadGroup(Ranks(rank, world_size), meeting, shared) for rank in range(world_size)]
        with ThreadPoolExecutor(world_size) as pool:
            return list(pool.map(function, groups))

    return over_ranks

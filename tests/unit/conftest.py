"""Ranks without processes: threads that meet in each collective."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any

import pytest
import torch

from cifarscale.distributed.group import Group
from cifarscale.distributed.ranks import Ranks


class ThreadGroup(Group):
    """One of several ranks in this process. `sums` are the tensors that it passed to `sum_`."""

    def __init__(self, ranks: Ranks, meeting: Barrier, shared: list[torch.Tensor]) -> None:
        super().__init__(ranks)
        self.sums: list[torch.Tensor] = []
        self._meeting, self._shared = meeting, shared

    def sum_(self, tensor: torch.Tensor) -> torch.Tensor:
        assert tensor.device.type == "cpu"
        self.sums.append(tensor.clone())
        self._shared[self.ranks.rank] = self.sums[-1]
        self._meeting.wait(60)
        tensor.copy_(torch.stack(self._shared).sum(0))
        self._meeting.wait(60)
        return tensor


@pytest.fixture
def over_ranks() -> Callable[[int, Callable[[ThreadGroup], Any]], list[Any]]:
    """over_ranks(world_size, function): what `function(group)` returns on each rank."""

    def over_ranks(world_size: int, function: Callable[[ThreadGroup], Any]) -> list[Any]:
        meeting = Barrier(world_size)
        shared = [torch.empty(0)] * world_size
        groups = [ThreadGroup(Ranks(rank, world_size), meeting, shared) for rank in range(world_size)]
        with ThreadPoolExecutor(world_size) as pool:
            return list(pool.map(function, groups))

    return over_ranks

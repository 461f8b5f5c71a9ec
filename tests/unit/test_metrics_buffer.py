"""The buffer of logged values: exact means, and the first step whose loss is not finite."""

import math

import pytest
import torch

from cifarscale.distributed.group import Group
from cifarscale.distributed.ranks import Ranks
from cifarscale.distributed.tree import shares
from cifarscale.training.metrics_buffer import MetricsBuffer

MICROBATCHES = 4


class _Summed(Group):
    """A rank's group whose sums add what the other ranks put in: their tables, as they were recorded."""

    def __init__(self, ranks: Ranks, tables: list[torch.Tensor]) -> None:
        super().__init__(ranks)
        self.tables = tables

    def sum_(self, tensor: torch.Tensor) -> torch.Tensor:
        self.tables.append(tensor.clone())
        return tensor


def microbatches(*losses: float) -> list[dict[str, torch.Tensor]]:
    return [{"accuracy": torch.tensor(loss / 2), "loss": torch.tensor(loss)} for loss in losses]


def buffer() -> MetricsBuffer:
    return MetricsBuffer(Group(Ranks()), MICROBATCHES, list(range(MICROBATCHES)))


def test_values_are_means_over_the_microbatches_step_by_step() -> None:
    mine = buffer()
    mine.add(mine.row(microbatches(1, 2, 3, 4)))
    mine.add(mine.row(microbatches(0, 0, 0, 2)))
    assert mine.fetch() is None
    assert mine.fetched == {"accuracy": [1.25, 0.25], "loss": [2.5, 0.5]}
    assert mine.means() == {"accuracy": 0.75, "loss": 1.5}


def test_what_is_fetched_in_parts_is_what_is_fetched_at_once() -> None:
    torch.manual_seed(0)
    steps = [microbatches(*torch.rand(MICROBATCHES).tolist()) for _ in range(7)]
    once, in_parts = buffer(), buffer()
    for i, step in enumerate(steps):
        once.add(once.row(step))
        in_parts.add(in_parts.row(step))
        if i in (2, 3):
            in_parts.fetch()
    once.fetch()
    in_parts.fetch()
    assert in_parts.means() == once.means()


def test_nothing_pending_is_nothing_to_fetch() -> None:
    assert buffer().fetch() is None


def test_a_cleared_window_starts_anew() -> None:
    mine = buffer()
    mine.add(mine.row(microbatches(1, 1, 1, 1)))
    mine.fetch()
    mine.clear()
    mine.add(mine.row(microbatches(3, 3, 3, 3)))
    mine.fetch()
    assert mine.means()["loss"] == 3


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("place", range(5))
@pytest.mark.parametrize("in_microbatch", [0, 3])
def test_the_first_step_that_is_not_finite_is_found(bad: float, place: int, in_microbatch: int) -> None:
    mine = buffer()
    for step in range(5):
        losses = [1.0] * MICROBATCHES
        if step >= place:
            losses[in_microbatch] = bad
        mine.add(mine.row(microbatches(*losses)))
    assert mine.fetch() == 4 - place


def test_losses_that_cancel_are_not_taken_for_finite() -> None:
    mine = buffer()
    mine.add(mine.row(microbatches(math.inf, -math.inf, 1, 1)))
    assert mine.fetch() == 0


def test_other_values_need_not_be_finite() -> None:
    mine = buffer()
    mine.add(mine.row([{"accuracy": torch.tensor(math.nan), "loss": torch.tensor(1.0)} for _ in range(MICROBATCHES)]))
    assert mine.fetch() is None


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
def test_tables_of_all_ranks_add_up_to_that_of_one(world_size: int) -> None:
    torch.manual_seed(0)
    losses = torch.rand(3, MICROBATCHES).tolist()
    tables: list[torch.Tensor] = []
    for rank in range(world_size):
        numbers = shares(MICROBATCHES, world_size)[rank]
        mine = MetricsBuffer(_Summed(Ranks(rank, world_size, rank), tables), MICROBATCHES, numbers)
        for step in losses:
            mine.add(mine.row(microbatches(*(step[number] for number in numbers))))
        mine.fetch()
    assert torch.equal(sum(tables)[:, :, 1], torch.tensor(losses).double())

"""The all-reduce in a fixed order: the same bits on any number of ranks, at the cost of a ring."""

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from processes import run_ranks
from torch.utils._python_dispatch import TorchDispatchMode

from cifarscale.distributed.all_reduce import GATHERED_BYTES, AllReduce
from cifarscale.distributed.group import Group
from cifarscale.distributed.ranks import Ranks
from cifarscale.distributed.tree import Tree

pytestmark = [
    pytest.mark.distributed,
    pytest.mark.skipif(not (dist.is_available() and dist.is_gloo_available()), reason="this torch has no gloo"),
]
NUM_TERMS = 8
SMALL, LARGE = [(3, 5), (), (7,)], [(GATHERED_BYTES // 4 + 3,), (5, 3)]  # not a multiple of the ranks


def _terms(shapes: list[Any]) -> list[list[torch.Tensor]]:
    """What the microbatches give: of very different sizes, so that the order of their sum shows."""
    generator = torch.Generator().manual_seed(0)
    return [
        [torch.randn(shape, generator=generator) * 10.0 ** (3 * i % 7) for shape in shapes] for i in range(NUM_TERMS)
    ]


@pytest.mark.parametrize("world_size", [2, 3, 4, 6, 8])
def test_means_do_not_depend_on_the_number_of_ranks(world_size: int, tmp_path: Path) -> None:
    run_ranks(_mean, world_size, world_size, str(tmp_path / "store"))


def _mean(rank: int, world_size: int, store: str) -> None:
    file_store, timeout = dist.FileStore(store, world_size), timedelta(seconds=60)
    dist.init_process_group("gloo", store=file_store, rank=rank, world_size=world_size, timeout=timeout)
    for shapes in (SMALL, LARGE):
        terms, tree = _terms(shapes), Tree(NUM_TERMS, world_size)
        reduced = AllReduce(terms[0], Group(Ranks(rank, world_size)), tree)
        alone = AllReduce(terms[0], Group(Ranks()), Tree(NUM_TERMS, 1)).mean(terms)
        for _ in range(2):  # the second time in the same memory
            mean = reduced.mean([terms[number] for number in tree.terms[rank]])
            assert all(map(torch.equal, mean, alone))
        in_turn = [sum(each) / NUM_TERMS for each in zip(*terms, strict=True)]
        assert not all(map(torch.equal, mean, in_turn)), "the order of these terms would not show"
    dist.destroy_process_group()


class _Sent(TorchDispatchMode):
    """Counts the bytes that a rank sends."""

    bytes = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(function)
        if "send" in name:
            self.bytes += sum(tensor.nbytes for tensor in args[0])
        elif name.startswith("c10d") and "recv" not in name:
            raise AssertionError(f"{name} is not counted")
        return function(*args, **(kwargs or {}))


def test_large_gradients_cost_what_a_ring_does() -> None:
    run_ranks(_bytes, 1, 16, 25_000_000)


def _bytes(_: int, world_size: int, num_floats: int) -> None:
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=world_size)
    gradients = [torch.zeros(num_floats - 1000), torch.zeros(1000)]
    with _Sent() as sent:
        AllReduce(gradients, Group(Ranks(0, world_size)), Tree(world_size, world_size)).mean([gradients])
    ring = 2 * 4 * num_floats * (world_size - 1) / world_size
    assert sent.bytes <= 1.001 * ring

"""The all-reduce of up to 64 ranks that are threads of this process: its bits, and what it sends from node to node."""

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from queue import Queue
from threading import local

import pytest
import torch

from cifarscale.distributed import all_reduce
from cifarscale.distributed.all_reduce import ALIGNMENT_BYTES, Flat, scratch_for, sum_along
from cifarscale.distributed.group import Transfers
from cifarscale.distributed.tree import Tree

NUM_TERMS = 64
FLOATS = 64 * 12 * 7
Sent = Counter[tuple[int, int]]


class Wires:
    """Carries what ranks, each a thread, send each other, and counts the bytes from rank to rank."""

    def __init__(self, world_size: int) -> None:
        self.queues = {(a, b): Queue[torch.Tensor]() for a in range(world_size) for b in range(world_size)}
        self.sent: Sent = Counter()
        self.here = local()

    def transfer(self, sent: Transfers, received: Transfers) -> None:
        rank = self.here.rank
        for other, tensors in sent.items():
            for tensor in tensors:
                self.queues[rank, other].put(tensor.clone())
                self.sent[rank, other] += tensor.nbytes
        for other, tensors in received.items():
            for tensor in tensors:
                tensor.copy_(self.queues[other, rank].get(timeout=60))


def summed_by_ranks(world_size: int, monkeypatch: pytest.MonkeyPatch) -> Sent:
    """Sums terms on ranks, and compares the bits on each with those of one. Returns: bytes from rank to rank."""
    wires, tree = Wires(world_size), Tree(NUM_TERMS, world_size)
    monkeypatch.setattr(all_reduce, "transfer", wires.transfer)
    monkeypatch.setattr(all_reduce, "GATHERED_BYTES", 0)
    generator = torch.Generator().manual_seed(0)
    terms = [torch.randn(FLOATS, generator=generator) * 10.0 ** (3 * i % 7) for i in range(NUM_TERMS)]

    def rank_sum(rank: int) -> torch.Tensor:
        wires.here.rank = rank
        sums = tree.sums(rank, [terms[number] for number in tree.terms[rank]], torch.add)
        rows = torch.stack(list(sums.values()))
        padded = torch.nn.functional.pad(rows, (0, -FLOATS % world_size))
        sum_along(tree, padded, rank, scratch_for(tree, padded))
        return padded[0, :FLOATS]

    expected = Tree(NUM_TERMS, 1).sums(0, terms, torch.add)[1]
    with ThreadPoolExecutor(world_size) as pool:
        for mine in pool.map(rank_sum, range(world_size)):
            assert torch.equal(mine, expected)
    return wires.sent


@pytest.mark.parametrize("world_size", [2, 3, 5, 6, 7, 8, 12, 16, 24, 48, 63, 64])
def test_every_rank_gets_the_bits_of_one(world_size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    summed_by_ranks(world_size, monkeypatch)


@pytest.mark.parametrize(("nodes", "ranks_per_node"), [(2, 4), (4, 4), (2, 8), (8, 8)])
def test_from_node_to_node_goes_a_part_of_one_nodes_sum(
    nodes: int, ranks_per_node: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    world_size, size = nodes * ranks_per_node, FLOATS * 4
    sent = summed_by_ranks(world_size, monkeypatch)
    for rank in range(world_size):
        of_rank = {other: count for (a, other), count in sent.items() if a == rank}
        across = sum(count for other, count in of_rank.items() if other // ranks_per_node != rank // ranks_per_node)
        assert sum(of_rank.values()) == 2 * size * (world_size - 1) // world_size  # a ring's
        assert across == 2 * size // ranks_per_node * (nodes - 1) // nodes


def test_flat_tensors_are_aligned_and_lie_as_others_do() -> None:
    like = [torch.zeros(5, 3, 3, 3).to(memory_format=torch.channels_last), torch.zeros(7), torch.zeros(())]
    flat = Flat(like, 2, 6)
    assert flat.rows.shape[1] % 6 == 0
    for views in flat.views:
        for i, (view, tensor) in enumerate(zip(views, like, strict=True)):
            assert view.stride() == tensor.stride()
            view.fill_(i + 1)
    for view, tensor in zip(flat.views[0], like, strict=True):
        assert (view.data_ptr() - flat.rows.data_ptr()) % ALIGNMENT_BYTES == 0
        assert view.shape == tensor.shape
    assert flat.rows.sum() == 2 * (1 * 135 + 2 * 7 + 3)

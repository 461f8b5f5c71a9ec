"""The all-reduce: means over ranks in an order that does not depend on their number."""

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
import torch.distributed as dist

from cifarscale.distributed.group import Group, Transfers, transfer
from cifarscale.distributed.tree import Tree, folded

GATHERED_BYTES = 1 << 16
"""Up to this size one exchange of everything is faster than several of parts."""
ALIGNMENT_BYTES = 512
"""As a GPU's allocator aligns a tensor of its own: where it lies may decide over the order of sums over it."""
Tensors = tuple[torch.Tensor, ...] | list[torch.Tensor]
Key = TypeVar("Key")


class AllReduce:
    """Means over all ranks' terms of tensors of always the same shapes, in memory that is kept for the next time."""

    def __init__(self, like: Sequence[torch.Tensor], group: Group, tree: Tree | None) -> None:
        """
        Args:
            like: tensors of these shapes, dtypes and layouts, on the device.
            tree: the terms are summed along it; None for one term a rank, summed in whatever order the backend takes.
        """
        self._ranks, self._tree, self._like = group.ranks, tree, like
        self._num_terms = tree.num_terms if tree else group.ranks.world_size
        self._flats = []
        if self._ranks.world_size > 1:
            num_rows = len(tree.nodes[self._ranks.rank]) if tree else 1
            for dtype in dict.fromkeys(tensor.dtype for tensor in like):
                places = [i for i, tensor in enumerate(like) if tensor.dtype == dtype]
                flat = Flat([like[i] for i in places], num_rows, self._ranks.world_size)
                self._flats.append((places, flat, scratch_for(tree, flat.rows) if tree else flat.rows[:0]))

    def mean(self, terms: Sequence[Tensors]) -> Tensors:
        """The means of all ranks' terms, which are overwritten by the next ones.

        Args:
            terms: this rank's, in the order of their numbers in the tree; one without a tree.
        """
        sums = list(self._tree.sums(self._ranks.rank, terms, torch._foreach_add).values()) if self._tree else terms
        if self._ranks.world_size == 1:
            (total,) = sums
            return torch._foreach_div(total, self._num_terms) if self._num_terms > 1 else total
        means = list(self._like)
        for places, flat, scratch in self._flats:
            for views, each in zip(flat.views, sums, strict=True):
                torch._foreach_copy_(views, [each[i] for i in places])
            if self._tree:
                sum_along(self._tree, flat.rows, self._ranks.rank, scratch)
                flat.rows[0].div_(self._num_terms)
            else:
                dist.all_reduce(flat.rows[0].div_(self._num_terms))
            for i, view in zip(places, flat.views[0], strict=True):
                means[i] = view
        return means


class Flat:
    """Tensors of one dtype that lie one after the other in one piece of memory, several times.

    Attributes:
        rows: (num_rows, n), contiguous; n is a multiple of `multiple_of`.
        views: of each row, its tensors.
    """

    def __init__(self, like: Sequence[torch.Tensor], num_rows: int, multiple_of: int) -> None:
        alignment, starts, end = ALIGNMENT_BYTES // like[0].element_size(), [], 0
        for tensor in like:
            starts.append(end)
            end += -(-tensor.numel() // alignment) * alignment
        self.rows = like[0].new_zeros(num_rows, -(-end // multiple_of) * multiple_of)
        self.views = [
            [
                row[start : start + tensor.numel()].as_strided(tensor.shape, torch.empty_like(tensor).stride())
                for start, tensor in zip(starts, like, strict=True)
            ]
            for row in self.rows
        ]


def scratch_for(tree: Tree, rows: torch.Tensor) -> torch.Tensor:
    """Memory for what a rank receives in `sum_along`: on a CPU, new pages each time would cost as much as the rest."""
    world_size, (num_rows, length) = len(tree.nodes), rows.shape
    if world_size & (world_size - 1):
        return rows.new_zeros((sum(map(len, tree.nodes)) - num_rows) * length // world_size)
    return rows.new_zeros(length // 2)


def sum_along(tree: Tree, rows: torch.Tensor, rank: int, scratch: torch.Tensor) -> None:
    """Sets the first row to the sum of all ranks' terms.

    Args:
        rows: (k, n), this rank's sums at its k nodes; n is a multiple of the ranks. They are lost.
        scratch: from `scratch_for`.
    """
    world_size = len(tree.nodes)
    if rows[0].nbytes <= GATHERED_BYTES:
        gather(tree, rows)
    elif world_size & (world_size - 1):
        sum_in_parts(
            list(rows), tree.nodes, rank, lambda terms: folded(terms, torch.Tensor.add_)[1], rows[0], transfer, scratch
        )
    else:
        halve(rows[0], rank, world_size, scratch)


def gather(tree: Tree, rows: torch.Tensor) -> None:
    """Each rank gets all sums, and adds them up: one exchange, in which it receives (W - 1) times the bytes."""
    most = max(map(len, tree.nodes))
    mine = torch.cat([rows, rows.new_zeros(most - len(rows), rows.shape[1])])
    gathered = [torch.empty_like(mine) for _ in tree.nodes]
    dist.all_gather(gathered, mine)
    rows_of = (zip(nodes, each[: len(nodes)], strict=True) for nodes, each in zip(tree.nodes, gathered, strict=True))
    sums = {node: row for each in rows_of for node, row in each}
    rows[0].copy_(folded(sums, torch.add)[1])


def halve(flat: torch.Tensor, rank: int, world_size: int, received: torch.Tensor) -> None:
    """Recursive halving and doubling: the bytes of a ring, 2 (W - 1) / W times those of the gradients.

    Rank r exchanges halves with the neighbour that has its node's sibling, then quarters with one of the two beside
    them, and so on up the tree: it is summed in its own order, the larger parts between the nearer ranks. With a power
    of two of ranks a node, of a node's sum each rank sends its part to other nodes, and no more.

    Args:
        flat: (n,); n is a multiple of the ranks.
        received: (n / 2,), to receive in.
    Source: Thakur et al. 2005, "Optimization of collective communication operations in MPICH", section 4.5.
    """
    part, steps = flat, []
    for distance in (1 << i for i in range(world_size.bit_length() - 1)):
        halves = part.view(2, -1)
        upper = bool(rank & distance)
        mine, theirs = halves[int(upper)], halves[int(not upper)]
        other = rank ^ distance
        transfer({other: [theirs]}, {other: [received[: len(mine)]]})
        mine += received[: len(mine)]
        steps.append((other, mine, theirs))
        part = mine
    for other, mine, theirs in reversed(steps):
        transfer({other: [mine]}, {other: [theirs]})


def sum_in_parts(
    rows: Sequence[torch.Tensor],
    keys: Sequence[Sequence[Key]],
    rank: int,
    add: Callable[[dict[Key, torch.Tensor]], torch.Tensor],
    out: torch.Tensor,
    send: Callable[[Transfers, Transfers], None],
    scratch: torch.Tensor | None = None,
) -> None:
    """Sets `out` (n,) to the sum of all ranks' rows: each rank gets a part of all, adds it up, and hands it on.

    Args:
        rows: this rank's, each (n,); what they hold is lost. One of them may be `out`.
        keys: those of each rank's rows, by which `add` tells them.
        add: the sum of rows in an order of its own; it may overwrite any of them.
        send: sends tensors to ranks, and fills those that come from ranks.
        scratch: memory for this rank's part of all others' rows, in place of new one.
    """
    world_size = len(keys)
    others = [other for other in range(world_size) if other != rank]
    parts, outs = [row.tensor_split(world_size) for row in rows], out.tensor_split(world_size)
    shape = sum(len(keys[other]) for other in others), len(outs[rank])
    places = iter(out.new_empty(shape) if scratch is None else scratch.view(shape))
    received = {other: [next(places) for _ in keys[other]] for other in others}
    send({other: [part[other] for part in parts] for other in others}, received)
    received[rank] = [part[rank] for part in parts]
    rows_of = (zip(each, received[i], strict=True) for i, each in enumerate(keys))
    outs[rank].copy_(add({key: row for each in rows_of for key, row in each}))
    send({other: [outs[rank]] for other in others}, {other: [outs[other]] for other in others})

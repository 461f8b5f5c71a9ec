"""The all-reduce: means over ranks in an order that does not depend on their number."""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch.nn import functional

from cifarscale.distributed.group import Group

GATHERED_BYTES = 1 << 20
"""Up to this size one exchange of everything is faster than two of parts."""
Tensors = tuple[torch.Tensor, ...] | list[torch.Tensor]


def tree_mean(terms: Sequence[Tensors]) -> Tensors:
    """The means of 2**n lists of tensors, each added to the one half the number further on, again and again."""
    total = len(terms)
    while len(terms) > 1:
        half = len(terms) // 2
        terms = [torch._foreach_add(a, b) for a, b in zip(terms[:half], terms[half:], strict=True)]
    return torch._foreach_div(terms[0], total) if total > 1 else terms[0]


def mean_over_ranks(local: Tensors, group: Group, in_order: bool) -> Tensors:
    """The means of all ranks' tensors, those of a dtype exchanged as one.

    Args:
        in_order: along one tree, so that means of 2**n terms, which lie evenly on the ranks, are the same on any number
            of them; else in whatever order the backend takes.
    """
    world_size = group.ranks.world_size
    if world_size == 1:
        return local
    means: dict[int, torch.Tensor] = {}
    for dtype in dict.fromkeys(tensor.dtype for tensor in local):
        alike = {i: tensor for i, tensor in enumerate(local) if tensor.dtype == dtype}
        means |= zip(alike, _exchanged(list(alike.values()), world_size, in_order), strict=True)
    return [means[i] for i in range(len(local))]


def _exchanged(local: Tensors, world_size: int, in_order: bool) -> Tensors:
    """`mean_over_ranks` of tensors of one dtype."""
    flat = torch.cat([tensor.reshape(-1) for tensor in local])
    if not in_order:
        dist.all_reduce(flat.div_(world_size))
    elif flat.nbytes <= GATHERED_BYTES:
        flat = gathered_mean(flat, world_size)
    else:
        flat = scattered_mean(flat, world_size)
    pieces = torch.split(flat, [tensor.numel() for tensor in local])
    return [piece.view(tensor.shape) for piece, tensor in zip(pieces, local, strict=True)]


def gathered_mean(flat: torch.Tensor, world_size: int) -> torch.Tensor:
    """Each rank gets all terms, and adds them up: one exchange, in which a rank receives (W - 1) times the bytes."""
    terms = [torch.empty_like(flat) for _ in range(world_size)]
    dist.all_gather(terms, flat)
    return tree_mean([[term] for term in terms])[0]


def scattered_mean(flat: torch.Tensor, world_size: int) -> torch.Tensor:
    """Each rank gets a piece of all terms, adds it up, and hands the sum on: the bytes of a ring, 2 (W - 1) / W times.

    Sums are element by element, so they are those of `gathered_mean`.
    """
    length = -(-flat.numel() // world_size)
    mine = functional.pad(flat, (0, length * world_size - flat.numel()))
    terms = torch.empty_like(mine)
    dist.all_to_all_single(terms, mine)
    mean = tree_mean([[term] for term in terms.view(world_size, length)])[0]
    dist.all_gather_into_tensor(terms, mean)
    return terms[: flat.numel()]

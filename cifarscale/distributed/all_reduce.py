"""The all-reduce: means over ranks in an order that does not depend on their number."""

from collections.abc import Sequence

import torch
import torch.distributed as dist

from cifarscale.distributed.group import Group

Tensors = tuple[torch.Tensor, ...] | list[torch.Tensor]


def tree_mean(terms: Sequence[Tensors]) -> Tensors:
    """The means of 2**n lists of tensors, each added to the one half the number further on, again and again."""
    total = len(terms)
    while len(terms) > 1:
        half = len(terms) // 2
        terms = [torch._foreach_add(a, b) for a, b in zip(terms[:half], terms[half:], strict=True)]
    return torch._foreach_div(terms[0], total) if total > 1 else terms[0]


def mean_over_ranks(local: Tensors, group: Group, in_order: bool) -> Tensors:
    """The means of all ranks' tensors, exchanged as one.

    Args:
        in_order: along one tree, so that means of 2**n terms, which lie evenly on the ranks, are the same on any number
            of them; else in whatever order the backend takes.
    """
    world_size = group.ranks.world_size
    if world_size == 1:
        return local
    flat = torch.cat([tensor.reshape(-1) for tensor in local])
    if in_order:
        terms = [torch.empty_like(flat) for _ in range(world_size)]
        dist.all_gather(terms, flat)
        flat = tree_mean([[term] for term in terms])[0]
    else:
        dist.all_reduce(flat.div_(world_size))
    pieces = torch.split(flat, [tensor.numel() for tensor in local])
    return [piece.view(tensor.shape) for piece, tensor in zip(pieces, local, strict=True)]

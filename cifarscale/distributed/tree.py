"""The binary tree along which terms are summed, and the ranks' shares of it, whatever their number.

Nodes have numbers: the root is 1, the children of node n are 2n and 2n + 1, and the leaves of a tree of S terms are
S … 2S - 1. Leaf S + l is the term whose number has the bits of l in reverse: below the root's children are the even and
the odd terms, so each term is added to the one half the number further on first.

A rank holds neighbouring leaves, sums those that form whole subtrees, and keeps the sums of as few of them as can be:
one where the number of ranks is a power of two. The ranks of a node are neighbours, too.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from itertools import pairwise
from typing import TypeVar

T = TypeVar("T")


def folded(sums: Mapping[int, T], add: Callable[[T, T], T]) -> dict[int, T]:
    """Sums at nodes of a tree, ascending, added up as far as siblings are there: all terms' give {1: the sum}."""
    found = dict(sums)
    for node in range(max(found) // 2, 0, -1):
        if 2 * node in found and 2 * node + 1 in found:
            found[node] = add(found.pop(2 * node), found.pop(2 * node + 1))
    return dict(sorted(found.items()))


class Tree:
    """The tree of a number of terms, a power of two, on at most as many ranks.

    Attributes:
        terms: the numbers of each rank's terms, ascending; no rank has more than an even share, rounded up.
        nodes: those of which each rank has the sum in the end, ascending.
    """

    def __init__(self, num_terms: int, world_size: int) -> None:
        self.num_terms = num_terms
        leaves = [range(*cuts) for cuts in pairwise(_cuts(num_terms, world_size))]
        self.terms = [sorted(_reversed(leaf, num_terms) for leaf in each) for each in leaves]
        self.nodes = [list(folded({num_terms + leaf: 0 for leaf in each}, lambda a, b: 0)) for each in leaves]

    def sums(self, rank: int, terms: Sequence[T], add: Callable[[T, T], T]) -> dict[int, T]:
        """The sums at the rank's nodes, from its terms in the order of their numbers."""
        leaves = (self.num_terms + _reversed(term, self.num_terms) for term in self.terms[rank])
        return folded(dict(zip(leaves, terms, strict=True)), add)


@cache
def shares(num_terms: int, world_size: int) -> list[list[int]]:
    """`Tree.terms`."""
    return Tree(num_terms, world_size).terms


def _cuts(num_leaves: int, num_ranks: int) -> list[int]:
    """Where the leaves are cut: at the roundest numbers that leave no rank more than its even share, rounded up."""
    most, cuts = -(-num_leaves // num_ranks), [0]
    for others in range(num_ranks - 1, 0, -1):
        least = max(cuts[-1] + 1, num_leaves - others * most)
        cuts.append(max(range(least, min(cuts[-1] + most, num_leaves - others) + 1), key=lambda cut: cut & -cut))
    return [*cuts, num_leaves]


def _reversed(number: int, size: int) -> int:
    """The number below a power of two with its bits in reverse."""
    return int(f"{number:0{size.bit_length() - 1}b}"[::-1], 2) if size > 1 else 0

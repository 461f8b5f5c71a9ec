"""The tree of sums: each term on one rank, and the same bits however many ranks there are."""

import pytest
import torch

from cifarscale.distributed.tree import Tree, folded, shares

ALL = [(num_terms, world_size) for num_terms in (1, 2, 4, 8, 16) for world_size in range(1, num_terms + 1)]
ALL += [(64, world_size) for world_size in (3, 4, 7, 12, 24, 33, 48, 63, 64)]


def terms_of(num_terms: int) -> list[torch.Tensor]:
    """Of very different sizes, so that the order of their sum shows."""
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(50, generator=generator) * 10.0 ** (3 * i % 7) for i in range(num_terms)]


def summed(terms: list[torch.Tensor]) -> torch.Tensor:
    """Each term added to the one half the number further on, again and again: what the sum has always been."""
    while half := len(terms) // 2:
        terms = [a + b for a, b in zip(terms[:half], terms[half:], strict=True)]
    return terms[0]


@pytest.mark.parametrize(("num_terms", "world_size"), ALL)
def test_each_term_is_on_one_rank_and_no_rank_has_more_than_its_share(num_terms: int, world_size: int) -> None:
    terms = shares(num_terms, world_size)
    assert sorted(term for each in terms for term in each) == list(range(num_terms))
    assert all(each == sorted(each) for each in terms)
    assert min(map(len, terms)) >= 1
    assert max(map(len, terms)) == -(-num_terms // world_size)


@pytest.mark.parametrize(("num_terms", "world_size"), ALL)
def test_the_sum_has_the_same_bits_on_any_number_of_ranks(num_terms: int, world_size: int) -> None:
    tree, terms, sums = Tree(num_terms, world_size), terms_of(num_terms), {}
    for rank in range(world_size):
        of_rank = tree.sums(rank, [terms[number] for number in tree.terms[rank]], torch.add)
        assert list(of_rank) == tree.nodes[rank]
        sums |= of_rank
    assert torch.equal(folded(sums, torch.add)[1], summed(terms))


def test_another_order_would_show() -> None:
    assert not torch.equal(sum(terms_of(16)), summed(terms_of(16)))


def test_sums_change_none_of_their_terms() -> None:
    terms = [torch.ones(3) for _ in range(4)]
    assert torch.equal(Tree(4, 1).sums(0, terms, torch.add)[1], torch.full((3,), 4.0))
    assert all(torch.equal(term, torch.ones(3)) for term in terms)


@pytest.mark.parametrize(("num_terms", "world_size"), [each for each in ALL if each[1] & (each[1] - 1) == 0])
def test_ranks_that_are_a_power_of_two_have_one_subtree_each(num_terms: int, world_size: int) -> None:
    """So each sends no more than a ring's bytes; its terms are evenly spaced, and its neighbour has the sibling."""
    tree = Tree(num_terms, world_size)
    assert tree.nodes == [[world_size + rank] for rank in range(world_size)]
    assert all(each == list(range(each[0], num_terms, world_size)) for each in tree.terms)


@pytest.mark.parametrize(("num_terms", "world_size", "most"), [(16, 3, 5), (16, 5, 5), (16, 6, 10), (64, 12, 20)])
def test_other_ranks_keep_few_sums(num_terms: int, world_size: int, most: int) -> None:
    """Fewer than two a rank, where cuts at equal distances leave up to three."""
    assert sum(map(len, Tree(num_terms, world_size).nodes)) <= most

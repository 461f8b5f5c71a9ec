"""Random numbers depend on where they are used, and on nothing else."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from cifarscale.distributed.randomness import Draws, batch_generator, normals, permutation, seed_torch, uniforms

SIZE = 96
DRAWS = [1, 3, 4, 5, 8, 11]
"""Below, at and above the four numbers that the generator makes at a time."""


@pytest.mark.parametrize("draws", DRAWS)
@pytest.mark.parametrize("parts", [1, 2, 3, 4, 7, 8, SIZE])
def test_any_split_of_the_batch_gives_the_rows_of_the_whole(parts: int, draws: int) -> None:
    whole = uniforms(3, "test", 17, range(SIZE), draws)
    for part in range(parts):
        strided = range(part, SIZE, parts)
        np.testing.assert_array_equal(uniforms(3, "test", 17, strided, draws), whole[strided])
        contiguous = range(SIZE * part // parts, SIZE * (part + 1) // parts)
        np.testing.assert_array_equal(uniforms(3, "test", 17, contiguous, draws), whole[contiguous])


@pytest.mark.parametrize("draws", DRAWS)
def test_a_row_does_not_depend_on_the_size_of_the_batch_or_who_asks(draws: int) -> None:
    whole = uniforms(3, "test", 17, range(SIZE), draws)
    for position in range(SIZE):
        np.testing.assert_array_equal(uniforms(3, "test", 17, range(position, position + 1), draws)[0], whole[position])
    np.testing.assert_array_equal(uniforms(3, "test", 17, range(10 * SIZE), draws)[:SIZE], whole)
    np.testing.assert_array_equal(uniforms(3, "test", 17, [5, 10, 15], draws), whole[[5, 10, 15]])


def test_no_positions_give_no_rows() -> None:
    empty = uniforms(0, "test", 0, range(0), 3)
    assert (empty.shape, empty.dtype) == ((0, 3), np.float32)


def test_numbers_are_float32_from_0_to_below_1() -> None:
    drawn = uniforms(0, "test", 0, range(50_000), 4)
    assert drawn.dtype == np.float32
    assert drawn.min() >= 0
    assert drawn.max() < 1


@pytest.mark.parametrize(
    "other",
    [(1, "test", 0), (2**63 - 1, "test", 0), (0, "test ", 0), (0, "", 0), (0, "test", 1), (0, "test", 2**40)],
)
def test_another_seed_purpose_or_step_gives_other_numbers(other: tuple[int, str, int]) -> None:
    ours, theirs = uniforms(0, "test", 0, range(SIZE), 4), uniforms(*other, range(SIZE), 4)
    assert np.mean(ours == theirs) < 0.01
    assert not np.array_equal(permutation(0, "test", 0, SIZE), permutation(*other, SIZE))
    assert batch_generator(0, "test", 0).random() != batch_generator(*other).random()


def test_no_two_places_share_their_numbers() -> None:
    """Neither within a row, nor between rows, nor between steps that follow each other."""
    drawn = np.concatenate([uniforms(0, "test", step, range(SIZE), 5) for step in range(20)])
    assert len(np.unique(drawn)) > 0.999 * drawn.size


def test_numbers_are_uniform_and_uncorrelated() -> None:
    drawn = uniforms(0, "test", 0, range(50_000), 5)
    for column in drawn.T:
        counts = np.bincount((column * 100).astype(int), minlength=100)
        assert ((counts - 500) ** 2 / 500).sum() < 160  # chi square with 99 degrees of freedom: 1 in 10,000
    assert abs(np.corrcoef(drawn.T) - np.eye(5)).max() < 0.02
    assert abs(np.corrcoef(drawn[1:, 0], drawn[:-1, 0])[0, 1]) < 0.02


@pytest.mark.parametrize("size", [0, 1, 2, 97, 1000])
def test_a_permutation_holds_each_number_once(size: int) -> None:
    order = permutation(0, "test", 3, size)
    np.testing.assert_array_equal(np.sort(order), np.arange(size))


def test_a_permutation_puts_each_number_everywhere() -> None:
    orders = np.stack([permutation(0, "test", place, 10) for place in range(2000)])
    counts = np.stack([np.bincount(column, minlength=10) for column in orders.T])
    assert counts.min() > 140  # 200 expected, with a deviation of 13
    assert counts.max() < 260


def test_numbers_are_the_same_in_all_versions() -> None:
    """Runs are resumed and compared across versions of NumPy and of this package: these never change."""
    np.testing.assert_array_equal(
        uniforms(0, "test", 0, range(2), 3),
        np.array(
            [
                [0.7045289874076843, 0.6316326856613159, 0.38569754362106323],
                [0.14613932371139526, 0.754777729511261, 0.03351253271102905],
            ],
            np.float32,
        ),
    )
    np.testing.assert_array_equal(
        uniforms(1, "augmentation", 1000, range(7, 8), 5)[0],
        np.array(
            [0.9082441926002502, 0.3631324768066406, 0.6820635795593262, 0.8195267915725708, 0.296497106552124],
            np.float32,
        ),
    )
    assert permutation(0, "test", 0, 8).tolist() == [6, 4, 7, 2, 3, 1, 0, 5]
    assert permutation(2**63 - 1, "other", 5, 8).tolist() == [7, 4, 6, 5, 0, 3, 2, 1]


def test_normals_are_standard_and_depend_on_their_place_alone() -> None:
    whole = normals(0, "latent", 3, range(4096), 10)
    assert torch.equal(whole[1::3], normals(0, "latent", 3, range(1, 4096, 3), 10))
    assert whole.isfinite().all()
    assert abs(whole.mean()) < 0.02
    assert abs(whole.std() - 1) < 0.02
    assert abs((whole.abs() < 1).double().mean() - 0.6827) < 0.01


def test_draws_depend_on_their_name_and_on_nothing_that_was_drawn_before() -> None:
    draws = Draws(3, "test", 17, range(SIZE), torch.device("cpu"))
    angles = draws.uniform("angle")
    assert angles.shape == (SIZE,)
    assert draws.normal("noise", 3, 4).shape == (SIZE, 3, 4)
    assert torch.equal(draws.uniform("angle"), angles)
    others = [replace(draws, **change) for change in ({"seed": 4}, {"purpose": "other"}, {"step": 18})]
    for other in (draws.uniform("scale"), *(each.uniform("angle") for each in others)):
        assert not torch.equal(other, angles)
    assert draws.shared("weight").random() == draws.shared("weight").random()


@pytest.mark.parametrize("world_size", [2, 3, 8])
def test_draws_of_a_share_of_the_batch_are_those_of_the_whole(world_size: int) -> None:
    whole = Draws(3, "test", 17, range(SIZE), torch.device("cpu"))
    for rank in range(world_size):
        mine = replace(whole, positions=range(rank, SIZE, world_size))
        assert torch.equal(mine.uniform("a", 2, 3), whole.uniform("a", 2, 3)[rank::world_size])
        assert torch.equal(mine.normal("a", 5), whole.normal("a", 5)[rank::world_size])


def test_whole_numbers_are_all_drawn_and_no_others() -> None:
    drawn = Draws(0, "test", 0, range(2000), torch.device("cpu")).integers("n", -2, 5, 2)
    assert (drawn.dtype, drawn.shape) == (torch.int64, (2000, 2))
    assert drawn.unique().tolist() == list(range(-2, 5))


def test_what_torch_draws_is_a_function_of_the_place() -> None:
    def drawn(step: int, place: int) -> list[float]:
        seed_torch(torch.device("cpu"), 1, "test", step, place)
        return torch.rand(3).tolist()

    with torch.random.fork_rng(devices=[]):
        assert drawn(0, 0) == drawn(0, 0)
        assert len({tuple(drawn(step, place)) for step in range(4) for place in range(4)}) == 16

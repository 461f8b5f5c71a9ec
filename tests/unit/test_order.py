"""The order of the samples: each once an epoch, and the same for any number of ranks."""

from itertools import count, islice

import numpy as np
import pytest

from cifarscale.data.order import EpochOrder, rank_positions, validation_ids
from cifarscale.distributed.ranks import Ranks
from cifarscale.distributed.tree import shares


def sequence(num_samples: int, batch_size: int, num_batches: int, seed: int = 0) -> np.ndarray:
    """The first batches, one after the other."""
    order = EpochOrder(num_samples, seed)
    starts = islice(count(0, batch_size), num_batches)
    return np.concatenate([order.at(range(start, start + batch_size)) for start in starts])


@pytest.mark.parametrize("num_samples", [1, 7, 64, 100])
@pytest.mark.parametrize("batch_size", [1, 7, 32, 64, 250])
def test_each_epoch_holds_each_sample_once(num_samples: int, batch_size: int) -> None:
    """Also where batches straddle epochs, or are larger than the set."""
    num_epochs = 5
    drawn = sequence(num_samples, batch_size, -(-num_epochs * num_samples // batch_size))
    for epoch in drawn[: num_epochs * num_samples].reshape(num_epochs, num_samples):
        np.testing.assert_array_equal(np.sort(epoch), np.arange(num_samples))


def test_the_sequence_does_not_depend_on_the_batch_size() -> None:
    expected = sequence(100, 600, 1)
    for batch_size in (1, 7, 100, 150):
        np.testing.assert_array_equal(
            sequence(100, batch_size, 600 // batch_size), expected[: 600 // batch_size * batch_size]
        )


def test_epochs_and_seeds_have_their_own_orders() -> None:
    drawn = [tuple(epoch) for seed in range(3) for epoch in sequence(50, 50, 4, seed).reshape(4, 50)]
    assert len(set(drawn)) == 12


def test_any_place_can_be_read_in_any_order() -> None:
    expected = sequence(100, 100, 8)
    order = EpochOrder(100, 0)
    for start in (650, 0, 99, 350, 349, 0):
        np.testing.assert_array_equal(order.at(range(start, start + 130)), expected[start : start + 130])


def test_the_order_is_the_same_in_all_versions() -> None:
    """A run that resumes with a later version goes on with the samples that it has not seen."""
    assert sequence(10, 10, 2).tolist() == [6, 0, 2, 9, 8, 5, 7, 4, 3, 1, 5, 4, 3, 9, 8, 7, 0, 6, 1, 2]


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
@pytest.mark.parametrize(("batch_size", "num_microbatches"), [(4, 0), (12, 0), (50, 0), (8, 4), (24, 8)])
def test_the_positions_of_the_ranks_partition_the_batch(
    batch_size: int, num_microbatches: int, world_size: int
) -> None:
    parts = [rank_positions(batch_size, num_microbatches, Ranks(rank, world_size)) for rank in range(world_size)]
    assert sorted(position for part in parts for position in part) == list(range(batch_size))
    assert all(list(part) == sorted(part) for part in parts)


def test_every_nth_position_of_a_rank_is_one_of_its_n_microbatches() -> None:
    for world_size in (1, 2, 3, 5):
        for rank, numbers in enumerate(shares(8, world_size)):
            positions = rank_positions(24, 8, Ranks(rank, world_size))
            for i, number in enumerate(numbers):
                assert positions[i :: len(numbers)] == [number, number + 8, number + 16]


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
def test_the_ranks_together_read_the_batch(world_size: int) -> None:
    whole = sequence(100, 60, 10).reshape(10, 60)
    for rank in range(world_size):
        order, positions = EpochOrder(100, 0), rank_positions(60, 0, Ranks(rank, world_size))
        for step, batch in enumerate(whole):
            places = range(step * 60 + rank, (step + 1) * 60, world_size)
            np.testing.assert_array_equal(order.at(places), batch[positions])


@pytest.mark.parametrize(("num_samples", "num_validation"), [(100, 0), (100, 1), (100, 30), (100, 99), (1003, 100)])
def test_validation_and_training_are_disjoint_and_complete(num_samples: int, num_validation: int) -> None:
    training, validation = validation_ids(num_samples, num_validation)
    assert len(validation) == num_validation
    np.testing.assert_array_equal(np.sort(np.concatenate([training, validation])), np.arange(num_samples))
    assert (np.diff(training) > 0).all()
    assert (np.diff(validation) > 0).all()


def test_a_larger_validation_set_contains_the_smaller_one() -> None:
    assert set(validation_ids(1000, 50)[1]) < set(validation_ids(1000, 100)[1])


def test_validation_ids_never_change() -> None:
    """Otherwise a later version would validate on samples that an earlier one trained on."""
    assert validation_ids(1000, 8)[1].tolist() == [49, 231, 327, 350, 388, 463, 698, 781]

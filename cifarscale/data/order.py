"""The order in which samples are trained on: an endless sequence that depends on the seed alone.

Step k trains on positions k·B … (k + 1)·B - 1 of the sequence, where B is the global batch size. One epoch is as many
positions as there are samples, and holds each of them once; a batch may straddle two epochs, so nothing is dropped.
The positions of microbatch s of S are s, s + S, s + 2S, …; a rank takes those of its microbatches.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from cifarscale.distributed.randomness import permutation
from cifarscale.distributed.ranks import Ranks
from cifarscale.distributed.tree import shares


class EpochOrder:
    """Sample indices by position, shuffled anew each epoch."""

    def __init__(self, num_samples: int, seed: int) -> None:
        self._num_samples = num_samples
        self._seed = seed
        self._epochs: dict[int, NDArray[np.int64]] = {}

    def at(self, positions: Sequence[int] | NDArray[np.int64]) -> NDArray[np.int64]:
        """Sample indices, shape (len(positions),), at ascending positions of the endless sequence."""
        places = np.asarray(positions)
        epochs = places // self._num_samples
        needed = range(int(epochs[0]), int(epochs[-1]) + 1)
        known = self._epochs  # a thread that reads ahead may set it meanwhile
        orders = {epoch: known[epoch] if epoch in known else self._order_of(epoch) for epoch in needed}
        self._epochs = orders  # at most two, save for tiny sets
        return np.concatenate([orders[e][places[epochs == e] - e * self._num_samples] for e in needed])

    def _order_of(self, epoch: int) -> NDArray[np.int64]:
        return permutation(self._seed, "sample order", epoch, self._num_samples)


def rank_positions(global_batch_size: int, num_microbatches: int, ranks: Ranks) -> Sequence[int]:
    """A rank's positions within each global batch, ascending.

    Args:
        num_microbatches: 0 for one a rank.
    """
    if not num_microbatches:
        return range(ranks.rank, global_batch_size, ranks.world_size)
    numbers = shares(num_microbatches, ranks.world_size)[ranks.rank]
    return [start + number for start in range(0, global_batch_size, num_microbatches) for number in numbers]


def validation_ids(num_samples: int, num_validation: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Ids (training, validation), each ascending. The same for every recipe: it is cut by a seed of its own."""
    order = permutation(0, "validation split", 0, num_samples)
    return np.sort(order[num_validation:]), np.sort(order[:num_validation])

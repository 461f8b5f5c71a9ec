"""A labelled image set in memory, as it is before it becomes shards."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Split:
    """One split of a set: images (n, 32, 32, 3) uint8 RGB; fine and coarse labels (n,) int64; n original names."""

    name: str
    images: NDArray[np.uint8]
    fine: NDArray[np.int64]
    coarse: NDArray[np.int64]
    filenames: tuple[str, ...]


@dataclass(frozen=True)
class Source:
    """A whole set: its splits, `train` first, and the names that the labels index."""

    dataset: str
    fine_names: tuple[str, ...]
    coarse_names: tuple[str, ...]
    splits: tuple[Split, ...]

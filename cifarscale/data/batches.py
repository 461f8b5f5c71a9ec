"""What readers deliver."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from cifarscale.distributed.ranks import Ranks


@dataclass(frozen=True)
class Batch:
    """A rank's share of a global batch.

    Attributes:
        images: (b, 3, H, W) uint8, channels last in memory.
        labels, ids: (b,) int64; an id is the sample's number within its split.
        positions: where in the global batch each sample stands, ascending.
    """

    images: torch.Tensor
    labels: torch.Tensor
    ids: torch.Tensor
    positions: Sequence[int]

    def to(self, device: torch.device) -> "Batch":
        """The batch on a device; the same object if it is there already."""
        if self.images.device == device:
            return self
        images, labels, ids = (t.to(device, non_blocking=True) for t in (self.images, self.labels, self.ids))
        return Batch(images, labels, ids, self.positions)


class Reader(Protocol):
    """Delivers a rank's share of the sequence that `order` describes, from any step on."""

    def batches(self, first_step: int) -> Iterator[Batch]:
        """The batches of the steps first_step, first_step + 1, … without end."""
        ...


@dataclass(frozen=True)
class Chunk:
    """Samples to evaluate: images (b, 3, H, W) uint8, labels (b,), and their rows (b,) within the split."""

    images: torch.Tensor
    labels: torch.Tensor
    rows: torch.Tensor


class EvaluationSplit(Protocol):
    """A split that is gone through once, each sample by one rank."""

    @property
    def num_samples(self) -> int: ...

    def chunks(self, ranks: Ranks, batch_size: int) -> Iterator[Chunk]:
        """A rank's share; which samples stand together in a chunk does not depend on the number of ranks."""
        ...

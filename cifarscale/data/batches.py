"""What readers deliver."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch

from cifarscale.distributed.randomness import normals, normals_of, places, uniform_tensor
from cifarscale.distributed.ranks import Ranks
from cifarscale.distributed.step_values import DIRECT, StepValues


@dataclass(frozen=True)
class Batch:
    """A rank's share of a global batch.

    Attributes:
        images: (b, 3, H, W) uint8, channels last in memory.
        labels, ids: (b,) int64; an id is the sample's number within its split.
        positions: where in the global batch each sample stands, ascending; the same in each batch of a reader.
        values: brings what is drawn for the samples to the device.
    """

    images: torch.Tensor
    labels: torch.Tensor
    ids: torch.Tensor
    positions: Sequence[int]
    values: StepValues = DIRECT

    def to(self, device: torch.device) -> "Batch":
        """The batch on a device; the same object if it is there already."""
        if self.images.device == device:
            return self
        images, labels, ids = (t.to(device, non_blocking=True) for t in (self.images, self.labels, self.ids))
        return replace(self, images=images, labels=labels, ids=ids)

    def uniforms(self, seed: int, purpose: str, step: int, draws: int) -> torch.Tensor:
        """`randomness.uniforms` for the samples of this batch of `step`, (b, draws) on its device."""
        return self._drawn(seed, purpose, step, draws, uniform_tensor)

    def normals(self, seed: int, purpose: str, step: int, draws: int, on_device: bool = False) -> torch.Tensor:
        """`randomness.normals` for the samples of this batch of `step`, (b, draws) on its device.

        Args:
            on_device: whether the device computes them: images of noise are worth a GPU's time.
        """
        if on_device:
            return normals_of(self._drawn(seed, purpose, step, draws, places))
        return self._drawn(seed, purpose, step, draws, normals)

    def _drawn(self, seed: int, purpose: str, step: int, draws: int, draw: Callable[..., torch.Tensor]) -> torch.Tensor:
        positions = self.positions
        return self.values.tensor(
            (purpose, (draw.__name__, seed, draws)),
            step,
            lambda step: draw(seed, purpose, step, positions, draws),
            self.images.device,
        )


class Reader(Protocol):
    """Delivers a rank's share of the sequence that `order` describes, from any step on."""

    @property
    def is_on_device(self) -> bool:
        """Whether all samples are there, and batches begin at any step at no cost."""
        ...

    def batches(self, first_step: int, values: StepValues = DIRECT) -> Iterator[Batch]:
        """The batches of the steps first_step, first_step + 1, … without end.

        Args:
            values: brings what they need, and what is drawn for them, to the device.
        """
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

"""What a task tells the engine: its networks, how each is updated, and how the result is evaluated."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, Protocol, Self

import torch
from torch import nn

from cifarscale.data.batches import Batch


class Prepared(Protocol):
    """A rank's share of a global batch, as a task wants it."""

    def part(self, i: int, parts: int) -> Self:
        """Every `parts`-th sample from number i on: microbatch i of `parts`."""
        ...


Outputs = tuple[torch.Tensor, ...]
"""What the log's figures are computed from."""


class Task(ABC):
    """One kind of training. An optimisation step updates each network of `updates` once, in that order."""

    networks: dict[str, nn.Module]
    updates: ClassVar[tuple[str, ...]]
    shown: ClassVar[tuple[str, ...]]
    """Logged values that the progress bar shows."""

    @abstractmethod
    def prepare(self, batch: Batch, step: int) -> Prepared:
        """The rank's share of the batch of `step`, augmented and as floats; each sample by itself or with one other of
        its microbatch, so that it does not depend on what else the rank has.
        """

    @abstractmethod
    def loss(
        self, update: str, networks: Mapping[str, nn.Module], part: Any, step: int
    ) -> tuple[torch.Tensor, Outputs]:
        """The loss of the network `update` on one microbatch, a mean over its samples, and outputs for `figures`.

        `networks` are replicas for this microbatch alone; several may be computed at the same time, on a core each, so
        what is not needed for the gradient belongs into `prepare` and `figures`.
        """

    @abstractmethod
    def figures(self, update: str, part: Any, outputs: Outputs) -> dict[str, torch.Tensor]:
        """Scalars to log of one microbatch, means over its samples. The engine adds `loss`, the sum of all updates'."""

    @abstractmethod
    def example_inputs(self, batch_size: int) -> dict[str, tuple[torch.Tensor, ...]]:
        """Inputs of the right shapes for each network, on its device."""

    @abstractmethod
    def evaluate(self, networks: Mapping[str, nn.Module], step: int) -> dict[str, float]:
        """Figures for the log after `step`, maybe none; every rank calls it and gets the same."""

    @abstractmethod
    def result(self, networks: Mapping[str, nn.Module]) -> dict[str, Any]:
        """The final figures for result.json; every rank calls it and gets the same."""

    def tables(self) -> dict[str, Any]:
        """What came with the result and is too long for it, by the names of JSON files; asked of rank 0."""
        return {}

"""What a task tells the engine: its networks, how each is updated, and how the result is evaluated."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import nn

from cifarscale.data.batches import Batch


class Task(ABC):
    """One kind of training. An optimisation step updates each network of `updates` once, in that order."""

    networks: dict[str, nn.Module]
    updates: ClassVar[tuple[str, ...]]
    shown: ClassVar[tuple[str, ...]]
    """Logged values that the progress bar shows."""

    @abstractmethod
    def losses(
        self, update: str, networks: Mapping[str, nn.Module], batch: Batch, step: int
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """The loss of the network `update` on one slice of the batch of `step`, and scalars to log; means over samples.

        `networks` are replicas for this slice alone; several slices may be computed at the same time. The engine logs
        the sum of the losses of all updates as `loss`.
        """

    @abstractmethod
    def example_inputs(self, batch_size: int) -> dict[str, tuple[torch.Tensor, ...]]:
        """Inputs of the right shapes for each network, on its device."""

    @abstractmethod
    def evaluate(self, networks: Mapping[str, nn.Module]) -> dict[str, float]:
        """Figures for the log during training; every rank calls it and gets the same."""

    @abstractmethod
    def result(self, networks: Mapping[str, nn.Module]) -> dict[str, Any]:
        """The final figures for result.json; every rank calls it and gets the same."""

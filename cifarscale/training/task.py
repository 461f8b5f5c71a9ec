"""What a task tells the engine: its networks, how each is updated, and how the result is evaluated."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from torch import nn

from cifarscale.data.batches import Batch

Networks = Mapping[str, Callable[..., torch.Tensor]]
"""Networks by name, as the engine has wrapped them for this step (DistributedDataParallel, torch.compile)."""
Losses = tuple[torch.Tensor, dict[str, torch.Tensor]]
"""The loss to descend on, and scalars to be logged beside it, all means over the samples given."""


class Task(ABC):
    """One kind of training. An optimisation step updates each network of `updates` once, in that order."""

    networks: dict[str, nn.Module]
    updates: ClassVar[tuple[str, ...]]
    shown: ClassVar[tuple[str, ...]]
    """Logged values that the progress bar shows."""

    @abstractmethod
    def losses(self, update: str, networks: Networks, batch: Batch, step: int) -> Losses:
        """The loss of one network on (a part of) a rank's share of the batch of `step`.

        The engine logs the sum over all updates as `loss`, and the values returned beside it by their names.
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

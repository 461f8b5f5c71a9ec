"""What the engine trains: networks, how each is updated, and how the result is evaluated."""

from abc import ABC, abstractmethod
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, Self

import torch
from torch import nn

from cifarscale.data.batches import Batch
from cifarscale.data.dataset import Dataset
from cifarscale.distributed.cpu_pool import CpuPool
from cifarscale.distributed.group import Group
from cifarscale.runs.run_folder import RunFolder


class Prepared(Protocol):
    """A rank's share of a global batch, as a learner wants it."""

    def part(self, i: int, parts: int) -> Self:
        """Every `parts`-th sample from number i on: microbatch i of `parts`."""
        ...


Outputs = tuple[torch.Tensor, ...]
"""What the log's metrics are computed from."""


@dataclass(frozen=True)
class LearnerContext:
    """What a learner is built in.

    Attributes:
        folder: of the run.
    """

    folder: RunFolder
    data: Dataset
    group: Group
    pool: CpuPool
    device: torch.device


class Learner(ABC):
    """Learns by optimisation steps, each of which updates `optimized_networks`."""

    networks: dict[str, nn.Module]
    optimized_networks: ClassVar[tuple[str, ...]]

    @abstractmethod
    def prepare(self, batch: Batch, step: int) -> Prepared:
        """The rank's share of the batch of `step`, augmented and as floats; each sample by itself or with one other of
        its microbatch, so that it does not depend on what else the rank has. Maybe in a thread of its own, while the
        step before ends.
        """

    def updates(self, prepared: Any) -> Sequence[tuple[str, Prepared]]:
        """What a step does, in order: which network is updated, and on which samples of what `prepare` has made.

        Each of `optimized_networks` once, on all of them, where a learner does not say otherwise.
        """
        return [(name, prepared) for name in self.optimized_networks]

    def obstacle_to_graphs(self) -> str:
        """Why a step cannot be recorded and replayed for others of its kind; empty if it can.

        It can where steps of one kind are the same operations on tensors of the same shapes, and whatever else changes
        comes from `batch.values`, or is a parameter or a buffer.
        """
        return "its task does not say that it is made for that"

    def kind_of(self, step: int) -> Hashable:
        """What tells apart steps that are different operations."""
        return None

    @abstractmethod
    def loss(
        self, update: str, networks: Mapping[str, nn.Module], part: Any, step: int
    ) -> tuple[torch.Tensor, Outputs]:
        """The loss of the network `update` on one microbatch, a mean over its samples, and outputs for `metrics`.

        `networks` are replicas for this microbatch alone; several may be computed at the same time, on a core each, so
        what is not needed for the gradient belongs into `prepare` and `metrics`.
        """

    @abstractmethod
    def metrics(self, update: str, part: Any, outputs: Outputs) -> dict[str, torch.Tensor]:
        """Scalars to log of one microbatch, means over its samples; NaN for one that this step has none of.

        The engine adds `loss`, the sum of all updates'. Of several updates of a network the last one's are logged.
        """

    @abstractmethod
    def example_inputs(self, batch_size: int) -> dict[str, tuple[torch.Tensor, ...]]:
        """Inputs of the right shapes for each network, on its device."""

    @abstractmethod
    def evaluate(self, networks: Mapping[str, nn.Module], step: int) -> dict[str, float]:
        """Metrics for the log after `step`, maybe none; every rank calls it and gets the same."""

    @abstractmethod
    def result(self, networks: Mapping[str, nn.Module]) -> dict[str, Any]:
        """The final metrics for result.json; every rank calls it and gets the same."""

    def tables(self) -> dict[str, Any]:
        """What came with the result and is too long for it, by the names of JSON files; asked of rank 0."""
        return {}

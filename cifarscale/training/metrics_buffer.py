"""Values of the steps since the last line of the log: kept on the device, and fetched only when they are needed."""

import math

import torch

from cifarscale.distributed.group import Group


class MetricsBuffer:
    """Collects scalars by step and microbatch; fetching takes one transfer and one reduction over the ranks.

    Each rank puts its microbatches' values into a table of zeros, which is then summed over the ranks, so the means are
    the same to the last bit for any number of them.
    """

    def __init__(self, group: Group, num_microbatches: int, numbers: list[int]) -> None:
        """
        Args:
            numbers: which of the microbatches are this rank's.
        """
        self._group, self._num_microbatches, self._numbers = group, num_microbatches, numbers
        self._pending: list[torch.Tensor] = []
        self._names: list[str] = []
        self.fetched: dict[str, list[float]] = {}
        """Means over the microbatches, a number a step, of what was fetched since the last `clear`."""

    def row(self, microbatches: list[dict[str, torch.Tensor]]) -> torch.Tensor:
        """One step's scalars of this rank's microbatches, as `add` takes them: (microbatches, names)."""
        self._names = list(microbatches[0])
        values = [value.detach().float() for one in microbatches for value in one.values()]
        return torch.stack(values).view(len(microbatches), -1)

    def add(self, row: torch.Tensor) -> None:
        """Takes in one step's scalars."""
        self._pending.append(row)

    def fetch(self) -> int | None:
        """Moves what is pending to `fetched`.

        Returns: how many steps before the newest the first loss that is not finite lies, None if all are finite;
        the same on all ranks.
        """
        if not self._pending:
            return None
        table = torch.zeros(len(self._pending), self._num_microbatches, len(self._names), dtype=torch.float64)
        table[:, self._numbers] = torch.stack(self._pending).double().cpu()
        self._pending = []
        steps = self._group.sum_(table).mean(1)
        for name, column in zip(self._names, steps.T.tolist(), strict=True):
            self.fetched.setdefault(name, []).extend(column)
        losses = steps[:, self._names.index("loss")].tolist()
        bad = next((i for i, loss in enumerate(losses) if not math.isfinite(loss)), None)
        return None if bad is None else len(losses) - 1 - bad

    def means(self) -> dict[str, float]:
        """Means over the fetched steps, of each value over those that have it; none of what no step has."""
        given = {name: [value for value in values if not math.isnan(value)] for name, values in self.fetched.items()}
        return {name: math.fsum(values) / len(values) for name, values in given.items() if values}

    def clear(self) -> None:
        self.fetched = {}

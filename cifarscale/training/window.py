"""Values of the steps since the last line of the log: kept on the device, and fetched only when they are needed."""

import math

import torch

from cifarscale.distributed import Group


class Window:
    """Collects scalars step by step; fetching them takes one transfer and one reduction over the ranks."""

    def __init__(self, group: Group) -> None:
        self._group = group
        self._pending: list[torch.Tensor] = []
        self._names: list[str] = []
        self.fetched: dict[str, list[float]] = {}
        """Means over the ranks, a number a step, of what was fetched since the last `clear`."""

    def add(self, values: dict[str, torch.Tensor]) -> None:
        """Takes in the scalars of one step."""
        self._names = list(values)
        self._pending.append(torch.stack([value.float() for value in values.values()]))

    def fetch(self) -> int | None:
        """Moves what is pending to `fetched`.

        Returns: how many steps before the newest the first loss that is not finite lies, None if all are finite;
        the same on all ranks.
        """
        if not self._pending:
            return None
        rows = self._group.sum_(torch.stack(self._pending).double().cpu()) / self._group.ranks.world_size
        self._pending = []
        for name, column in zip(self._names, rows.T.tolist(), strict=True):
            self.fetched.setdefault(name, []).extend(column)
        losses = rows[:, self._names.index("loss")].tolist()
        bad = next((i for i, loss in enumerate(losses) if not math.isfinite(loss)), None)
        return None if bad is None else len(losses) - 1 - bad

    def means(self) -> dict[str, float]:
        """Means over the fetched steps."""
        return {name: math.fsum(values) / len(values) for name, values in self.fetched.items()}

    def clear(self) -> None:
        self.fetched = {}

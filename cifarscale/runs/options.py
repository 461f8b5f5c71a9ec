"""Where and how a run is executed."""

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Self


@dataclass(frozen=True)
class RunOptions:
    """Where and how a run is executed; none of it changes what the run computes.

    Attributes:
        shards: the folder of shards on this machine; None where none is needed.
        device: `cpu`, `cuda` or `auto`.
        num_workers: reading processes a rank, for the streaming reader.
        patience_s: how long to wait for another process that still writes the run folder, before it is refused.
    """

    shards: Path | None = None
    device: str = "auto"
    num_workers: int = 0
    patience_s: float = 0

    def as_plain(self) -> dict[str, Any]:
        """As JSON takes it, to cross to another process."""
        return asdict(self) | {"shards": self.shards and str(self.shards)}

    @classmethod
    def from_plain(cls, values: dict[str, Any]) -> Self:
        return cls(**values | {"shards": values["shards"] and Path(values["shards"])})

    def on(self, shards: Path | None) -> Self:
        """These options on other shards."""
        return replace(self, shards=shards)

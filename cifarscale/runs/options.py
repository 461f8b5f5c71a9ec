"""Where and how a run is executed."""

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Self

from cifarscale.errors import ConfigError

DEVICES = ("auto", "cpu", "cuda")


@dataclass(frozen=True)
class Timeouts:
    """How long, in seconds, a rank waits for the others before it gives up.

    Attributes:
        rendezvous: at the start. A node that reads Python from a busy file server takes a while.
        collective: in an exchange between the devices, for a rank that hangs; one that is gone is noticed at once.
        control: on GPUs, for what one rank does alone: reading, a checkpoint, an upload. On CPUs `collective` holds.
    """

    rendezvous: float = 300
    collective: float = 600
    control: float = 1800


@dataclass(frozen=True)
class RunOptions:
    """Where and how a run is executed; none of it changes what the run computes.

    Attributes:
        shards: the folder of shards on this machine; None where none is needed.
        device: `cpu`, `cuda` or `auto`.
        num_workers: reading processes a rank, for the streaming reader.
        patience_s: how long to wait for another process that still writes the run folder, before it is refused.
        timeouts: how long ranks wait for each other.
        digests: whether a digest of each tensor is kept after each step, for `verify`.
        graph: whether a GPU replays steps as a graph where it can.
    """

    shards: Path | None = None
    device: str = "auto"
    num_workers: int = 0
    patience_s: float = 0
    timeouts: Timeouts = Timeouts()
    digests: bool = False
    graph: bool = True

    def __post_init__(self) -> None:
        if self.device not in DEVICES:
            raise ConfigError(f"device = {self.device!r} is not valid; valid are {', '.join(DEVICES)}")

    def as_plain(self) -> dict[str, Any]:
        """As JSON takes it, to cross to another process."""
        return asdict(self) | {"shards": self.shards and str(self.shards)}

    @classmethod
    def from_plain(cls, values: dict[str, Any]) -> Self:
        shards, timeouts = values["shards"] and Path(values["shards"]), Timeouts(**values.get("timeouts", {}))
        return cls(**values | {"shards": shards, "timeouts": timeouts})

    def on(self, shards: Path | None) -> Self:
        """These options on other shards."""
        return replace(self, shards=shards)

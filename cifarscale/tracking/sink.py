"""Where what training reports goes: each place is a sink, and training knows none of them."""

from collections.abc import Sequence
from typing import Any, Protocol


class Sink(Protocol):
    """Takes what rank 0 reports of a run."""

    def started(self, step: int) -> None:
        """Training goes on after `step` (0 at first); whatever was reported of later steps is void."""

    def log(self, step: int, values: dict[str, float]) -> None:
        """Metrics after a step. Must not wait for a network."""

    def finish(self, result: dict[str, Any] | None, error: BaseException | None) -> None:
        """The run is over: with its result, or with what ended it. Returns after a bounded time."""


class Sinks:
    """Several sinks as one, told in their order."""

    def __init__(self, sinks: Sequence[Sink]) -> None:
        self._sinks = sinks

    def started(self, step: int) -> None:
        for sink in self._sinks:
            sink.started(step)

    def log(self, step: int, values: dict[str, float]) -> None:
        for sink in self._sinks:
            sink.log(step, values)

    def finish(self, result: dict[str, Any] | None, error: BaseException | None) -> None:
        for sink in self._sinks:
            sink.finish(result, error)

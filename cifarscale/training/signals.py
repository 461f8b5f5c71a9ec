"""Being asked to stop: a signal only sets a flag, which the engine looks at between two steps."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from cifarscale.errors import EXIT_LEFT_AT_ONCE

STOP = 1
"""Save and end: SIGTERM, or Ctrl-C."""
CONTINUE_LATER = 2
"""Save and end, to go on in a new allocation: SIGUSR2, by which SLURM warns of a time limit or a preemption."""
_MEANING = {signal.SIGTERM: STOP, signal.SIGINT: STOP, signal.SIGUSR2: CONTINUE_LATER}


class StopRequest:
    """What this process was asked for: 0 for nothing, else STOP or CONTINUE_LATER, which is the stronger one.

    Attributes:
        after_step: where to save and end whatever else is asked; None is nowhere.
    """

    after_step: int | None = None

    def __init__(self) -> None:
        self.requested = 0

    def __call__(self, signum: int, frame: FrameType | None) -> None:
        if self.requested and signum == signal.SIGINT:
            os._exit(EXIT_LEFT_AT_ONCE)
        self.requested = max(self.requested, _MEANING[signal.Signals(signum)])


@contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """Signals request a stop inside the block; a second Ctrl-C ends the process at once."""
    request = StopRequest()
    previous = {signum: signal.signal(signum, request) for signum in _MEANING}
    try:
        yield request
    finally:
        for signum, handler in previous.items():
            signal.signal(signum, handler)

"""Being asked to stop: a signal only sets a flag, which the engine looks at between two steps."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from cifarscale.errors import EXIT_LEFT_AT_ONCE


class StopRequest:
    """Whether this process was asked to stop."""

    def __init__(self) -> None:
        self.requested = False

    def __call__(self, signum: int, frame: FrameType | None) -> None:
        if self.requested and signum == signal.SIGINT:
            os._exit(EXIT_LEFT_AT_ONCE)
        self.requested = True


@contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """SIGTERM and the first Ctrl-C request a stop inside the block; a second Ctrl-C ends the process at once."""
    request = StopRequest()
    previous = {signum: signal.signal(signum, request) for signum in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield request
    finally:
        for signum, handler in previous.items():
            signal.signal(signum, handler)

"""Being asked to stop, by a signal.

While a network is trained a signal only sets a flag, which the engine looks at between two steps (`stop_on_signals`).
Before and after that there is nothing to save, and a rank ends at once (`leave_on_signals`).
"""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from cifarscale.errors import EXIT_LEFT_AT_ONCE, Interrupted

STOP = 1
"""Save and end: SIGTERM, or Ctrl-C."""
CONTINUE_LATER = 2
"""Save and end, to go on in a new allocation: SIGUSR2, by which SLURM warns of a time limit or a preemption.

So does SIGTERM in a job that queues itself again, since by default that is all that a preempted job is sent."""
REQUEUES_VARIABLE = "CIFARSCALE_REQUEUES"
"""Is set in a job that queues itself again if it was not cancelled."""
_MEANING = {signal.SIGTERM: STOP, signal.SIGINT: STOP, signal.SIGUSR2: CONTINUE_LATER}
STOP_SIGNALS = frozenset(_MEANING)


def _meaning(signum: int) -> int:
    if signum == signal.SIGTERM and REQUEUES_VARIABLE in os.environ:
        return CONTINUE_LATER
    return _MEANING[signal.Signals(signum)]


class StopSignal(KeyboardInterrupt):
    """A signal that asked this process to stop where it has nothing to save.

    Like Ctrl-C's exception no `except Exception` on its way swallows it, such as there are in the imports of torch.
    """

    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.signum = signal.Signals(signum)

    def as_error(self) -> Interrupted:
        """What users are told, and how a launcher learns of it."""
        return Interrupted(
            f"by {self.signum.name} outside of training, with nothing to save. Run the same command again to go on",
            to_continue=_meaning(self.signum) == CONTINUE_LATER,
        )


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
        self.requested = max(self.requested, _meaning(signum))


def leave_on_signals() -> None:
    """Has signals raise StopSignal in the main thread from now on, but where `stop_on_signals` hears them."""
    for signum in STOP_SIGNALS:
        signal.signal(signum, _raise)


@contextmanager
def leaving_on_signals() -> Iterator[None]:
    """`leave_on_signals` inside the block, and what was before after it."""
    previous = {signum: signal.getsignal(signum) for signum in STOP_SIGNALS}
    leave_on_signals()
    try:
        yield
    finally:
        for signum, handler in previous.items():
            signal.signal(signum, handler)


def _raise(signum: int, frame: FrameType | None) -> None:
    raise StopSignal(signum)


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

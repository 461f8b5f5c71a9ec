"""Being asked to stop, by a signal.

While a network is trained a signal only sets a flag, which the engine looks at between two steps (`stop_on_signals`).
Before and after that there is nothing to save, and a rank ends at once (`leave_on_signals`).
"""

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import FrameType
from typing import Any

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
            leave_at_once()
        self.requested = max(self.requested, _meaning(signum))


def leave_at_once() -> None:
    """Ends this process without saving. An interactive one (a prompt, a notebook) lives on with all that is in it.

    Raises: KeyboardInterrupt there.
    """
    if hasattr(sys, "ps1"):
        raise KeyboardInterrupt
    os._exit(EXIT_LEFT_AT_ONCE)


@contextmanager
def handling(handlers: Mapping[signal.Signals, Callable[[int, FrameType | None], Any]]) -> Iterator[None]:
    """Has handlers hear signals inside the block, and those from before after it.

    Python hears signals in its main thread alone: in another one the handlers stay as they are.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = {signum: signal.signal(signum, handler) for signum, handler in handlers.items()}
    try:
        yield
    finally:
        for signum, handler in previous.items():
            signal.signal(signum, handler)


def leave_on_signals() -> None:
    """Has signals raise StopSignal in the main thread from now on, but where `stop_on_signals` hears them."""
    for signum in STOP_SIGNALS:
        signal.signal(signum, _raise)


@contextmanager
def leaving_on_signals() -> Iterator[None]:
    """`leave_on_signals` inside the block, and what was before after it. Raises: Interrupted for a signal."""
    try:
        with handling(dict.fromkeys(STOP_SIGNALS, _raise)):
            yield
    except StopSignal as stopped:
        raise stopped.as_error() from None


def _raise(signum: int, frame: FrameType | None) -> None:
    raise StopSignal(signum)


@contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """Signals request a stop inside the block; a second Ctrl-C ends the process at once."""
    request = StopRequest()
    with handling(dict.fromkeys(STOP_SIGNALS, request)):
        yield request

"""Forks the ranks of a local job from one process, so that torch is imported once for all of them.

`python -m cifarscale.launch.rank_launcher` has a session of its own, one thread, and no CUDA context: a fork of it is
sound, where a fork of whatever a user has called us from (a notebook, say) may not be. It passes signals on to its
ranks, and ends them when one has failed.
"""

import ctypes
import json
import os
import signal
import sys
import traceback
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from cifarscale.errors import CifarscaleError
from cifarscale.launch.call import Call
from cifarscale.launch.failures import LOGS_VARIABLE, report_failure
from cifarscale.training.signals import STOP_SIGNALS, StopSignal, leave_on_signals

CALL_VARIABLE = "CIFARSCALE_CALL"
"""Holds the call as JSON."""
THREADS_VARIABLE = "CIFARSCALE_THREADS_A_RANK"
"""Holds OMP_NUM_THREADS of each rank; the launcher itself has one thread, as a process that forks must."""
GRACE_S = 20
"""How long the other ranks may take to end by themselves after one has failed."""
_PR_SET_PDEATHSIG, _PR_SET_NAME = 1, 15


@dataclass(frozen=True)
class Ended:
    """The rank that failed first, and its exit code: negative for a signal, as in subprocess."""

    rank: int
    code: int


def main() -> int:
    """Returns: the exit code of the rank that a fork of this process has become."""
    _end_with(os.getppid())
    leave_on_signals()
    launcher, world_size = os.getpid(), int(os.environ["WORLD_SIZE"])
    report = int(sys.argv[1])
    try:
        import cifarscale.launch.worker
        import cifarscale.training.run  # noqa: F401 (and torch with it)

        signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)  # none is lost, or heard twice, between two forks
    except StopSignal as stopped:
        os.environ["RANK"] = "0"
        return report_failure(stopped.as_error())
    ranks: list[int] = []
    for rank in range(world_size):
        pid = os.fork()
        if pid == 0:
            os.close(report)
            return _run(rank, launcher)
        ranks.append(pid)
    first = _supervise(ranks)
    if first is not None:
        os.write(report, json.dumps([first.rank, first.code]).encode())
    os._exit(0)  # an orderly end of torch would only take time


def _run(rank: int, launcher: int) -> int:
    """Is a rank from here on: in its own name, log and environment. Returns: its exit code."""
    _end_with(launcher)
    ctypes.CDLL(None).prctl(_PR_SET_NAME, f"rank-{rank}".encode())
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "OMP_NUM_THREADS": os.environ[THREADS_VARIABLE]}
    log = Path(os.environ[LOGS_VARIABLE], f"rank-{rank}.log")
    if rank > 0:
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.close(output)
    leave_on_signals()
    try:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
        from cifarscale.launch.worker import run_call

        run_call(Call(**json.loads(os.environ[CALL_VARIABLE])))
    except StopSignal as stopped:
        return report_failure(stopped.as_error())
    except Exception as error:
        if not isinstance(error, CifarscaleError):
            # The others print to this file anyway; rank 0 spares the terminal what is mostly another rank's failure.
            with log.open("a") as file:
                traceback.print_exc(file=file)
        return report_failure(error)
    return 0


def _supervise(pids: list[int]) -> Ended | None:
    """Waits for all ranks; after a failure the others have GRACE_S. Returns: the rank that failed first."""
    running = dict(zip(pids, range(len(pids)), strict=True))

    def send(signum: int) -> None:
        for pid in running:
            os.kill(pid, signum)

    def pass_on(signum: int, frame: FrameType | None) -> None:
        send(signum)

    def end_all(signum: int, frame: FrameType | None) -> None:
        send(signal.SIGKILL)

    for signum in STOP_SIGNALS:
        signal.signal(signum, pass_on)
    signal.signal(signal.SIGALRM, end_all)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
    first: Ended | None = None
    while running:
        # A rank that has ended keeps its number until it is waited for, so that no signal reaches a stranger.
        pid = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOWAIT).si_pid  # type: ignore[union-attr]
        rank = running.pop(pid)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        if code and first is None:
            first = Ended(rank, code)
            signal.alarm(GRACE_S)
    return first


def _end_with(parent: int) -> None:
    """Has the kernel kill this process when its parent dies, however it does."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it died before
            os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main())

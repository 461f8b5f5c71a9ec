"""Several processes on this machine, one a rank."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from types import FrameType

from cifarscale.cluster.call import Call
from cifarscale.cluster.failures import LOGS_VARIABLE, failures, forget_failures
from cifarscale.errors import EXIT_LEFT_AT_ONCE, CifarscaleError, DistributedError, Interrupted
from cifarscale.files import writing_to
from cifarscale.rendezvous import ADDRESS_VARIABLE, FILE_VARIABLE

CALL_VARIABLE = "CIFARSCALE_CALL"
"""Holds the call as JSON."""
GRACE_S = 20
"""How long the other ranks may take to end by themselves after one has failed."""
_POLL_S = 0.02


def run_locally(call: Call, nproc: int, logs: Path) -> None:
    """Runs a call in `nproc` processes; rank 0 writes to this terminal, the others to `logs/rank-N.log`.

    SIGTERM and Ctrl-C are passed on to all ranks. If this process is killed, so are they.

    Raises: what the rank that failed first raised; Interrupted if they stopped because they were asked to.
    """
    with writing_to(logs):
        logs.mkdir(parents=True, exist_ok=True)
    forget_failures(logs)
    meeting = logs / f"rendezvous.{os.getpid()}.json"
    meeting.unlink(missing_ok=True)  # of a launcher that was killed
    environment = os.environ | {
        FILE_VARIABLE: str(meeting),
        ADDRESS_VARIABLE: "127.0.0.1",
        "WORLD_SIZE": str(nproc),
        CALL_VARIABLE: json.dumps(asdict(call)),
        LOGS_VARIABLE: str(logs),
    }
    environment.setdefault("OMP_NUM_THREADS", str(max(1, len(os.sched_getaffinity(0)) // nproc)))
    environment.setdefault("GLOO_SOCKET_IFNAME", "lo")
    processes: list[subprocess.Popen[bytes]] = []
    try:
        with _passing_on_signals(processes):
            for rank in range(nproc):
                processes.append(_start(rank, environment, logs))
            first = _wait(processes)
    finally:
        for process in processes:
            process.kill()
            process.wait()
        meeting.unlink(missing_ok=True)
    if first is not None:
        raise _failure(processes, first, logs)


def _start(rank: int, environment: dict[str, str], logs: Path) -> subprocess.Popen[bytes]:
    """One rank, in a session of its own, so that a Ctrl-C reaches it through us alone and counts once."""
    command = [sys.executable, "-m", "cifarscale.cluster.worker"]
    environment = environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
    if rank == 0:
        return subprocess.Popen(command, env=environment, start_new_session=True)
    with (logs / f"rank-{rank}.log").open("ab") as output:
        return subprocess.Popen(command, env=environment, start_new_session=True, stdout=output, stderr=output)


def _wait(processes: Sequence[subprocess.Popen[bytes]]) -> int | None:
    """Waits for all to end; after a failure the others have GRACE_S. Returns: the rank that failed first."""
    first, deadline = None, float("inf")
    while any(process.poll() is None for process in processes) and time.monotonic() < deadline:
        if first is None:
            first = next((rank for rank, process in enumerate(processes) if process.poll()), None)
            deadline = deadline if first is None else time.monotonic() + GRACE_S
        time.sleep(_POLL_S)
    return next((rank for rank, process in enumerate(processes) if process.poll()), None) if first is None else first


def _failure(processes: Sequence[subprocess.Popen[bytes]], first: int, logs: Path) -> CifarscaleError:
    """The error to show: a rank that was killed, or what is told in our own words, before what others made of that."""
    told = failures(logs)
    ended_by = -processes[first].returncode
    if ended_by > 0 and all(failure.rank != first for failure in told):
        return DistributedError(
            f"rank {first} was ended by {signal.Signals(ended_by).name}. "
            "The last checkpoint stands: run the same command again to resume"
        )
    if not told:
        return DistributedError(f"rank {first} ended with code {processes[first].returncode}; see {logs}")
    cause = told[0]
    if cause.exit_code == Interrupted.exit_code:
        return Interrupted(cause.message)
    if cause.expected:
        return CifarscaleError(cause.message)
    return CifarscaleError(f"rank {cause.rank}: {cause.message} (see {logs}/rank-{cause.rank}.log)")


@contextmanager
def _passing_on_signals(processes: Sequence[subprocess.Popen[bytes]]) -> Iterator[None]:
    """SIGTERM and the first Ctrl-C go to all ranks; a second Ctrl-C kills them, also where they wait for a peer."""
    requested = False

    def pass_on(signum: int, frame: FrameType | None) -> None:
        nonlocal requested
        again = requested and signum == signal.SIGINT
        requested = True
        for process in processes:
            if process.poll() is None:
                process.send_signal(signal.SIGKILL if again else signum)
        if again:
            os._exit(EXIT_LEFT_AT_ONCE)

    previous = {signum: signal.signal(signum, pass_on) for signum in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for signum, handler in previous.items():
            signal.signal(signum, handler)

"""Several processes on this machine, one a rank, with the environment that torchrun would give them."""

import json
import logging
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from cifarscale.errors import EXIT_ERROR, EXIT_LEFT_AT_ONCE, CifarscaleError, DistributedError, Interrupted
from cifarscale.files import writing_to

log = logging.getLogger(__name__)

GRACE_S = 20
"""How long the other ranks may take to end by themselves after one has failed."""
_POLL_S = 0.02


@dataclass(frozen=True)
class Call:
    """What every rank runs: a function of `cluster.worker` and its arguments, as plain data."""

    function: str
    arguments: dict[str, Any]


def run_locally(call: Call, nproc: int, logs: Path) -> None:
    """Runs a call in `nproc` processes; rank 0 writes to this terminal, the others to `logs/rank-N.log`.

    SIGTERM and Ctrl-C are passed on to all ranks. If this process is killed, so are they.

    Raises: what the rank that failed first raised; Interrupted if they stopped because they were asked to.
    """
    with writing_to(logs):
        logs.mkdir(parents=True, exist_ok=True)
    for old in logs.glob("rank-*.error.json"):
        old.unlink()
    environment = os.environ | {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(_free_port()),
        "WORLD_SIZE": str(nproc),
        "CIFARSCALE_CALL": json.dumps(asdict(call) | {"command": sys.argv, "debug": log.isEnabledFor(logging.DEBUG)}),
        "CIFARSCALE_LOGS": str(logs),
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
    for rank, process in enumerate(processes):
        if process.returncode < 0 and not _told(logs, rank) and rank == first:
            name = signal.Signals(-process.returncode).name
            return DistributedError(
                f"rank {rank} was ended by {name}. The last checkpoint stands: run the same command again to resume"
            )
    told = [report for rank in range(len(processes)) if (report := _told(logs, rank))]
    if not told:
        return DistributedError(f"rank {first} ended with code {processes[first].returncode}; see {logs}")
    report = min(told, key=lambda report: (not report["expected"], report["time"]))
    if report["exit_code"] == Interrupted.exit_code:
        return Interrupted(report["message"])
    if report["expected"]:
        return CifarscaleError(report["message"])
    return CifarscaleError(f"rank {report['rank']}: {report['message']} (see {logs}/rank-{report['rank']}.log)")


def _told(logs: Path, rank: int) -> dict[str, Any] | None:
    path = logs / f"rank-{rank}.error.json"
    if not path.exists():
        return None
    report: dict[str, Any] = json.loads(path.read_text())
    return report


def tell_failure(error: BaseException) -> int:
    """Called by a rank that fails: leaves its error for the launcher. Returns: the exit code to end with."""
    expected = isinstance(error, CifarscaleError)
    code = error.exit_code if isinstance(error, CifarscaleError) else EXIT_ERROR
    rank = int(os.environ["RANK"])
    message = str(error) if expected else f"{type(error).__name__}: {error}"
    report = {"rank": rank, "time": time.time(), "message": message, "expected": expected, "exit_code": code}
    Path(os.environ["CIFARSCALE_LOGS"], f"rank-{rank}.error.json").write_text(json.dumps(report))
    return code


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


def _free_port() -> int:
    """A port that nobody listens on, below those that the system hands out to outgoing connections."""
    while True:
        port = random.randrange(20_000, 32_768)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port

"""Several processes on this machine, one a rank."""

import json
import logging
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import Any

from cifarscale.config.recipe import Recipe
from cifarscale.distributed.ranks import ADDRESS_VARIABLE, FILE_VARIABLE
from cifarscale.errors import (
    EXIT_INTERRUPTED,
    CifarscaleError,
    ConfigError,
    DistributedError,
    Interrupted,
    short_path,
    writing_to,
)
from cifarscale.launch.call import Call
from cifarscale.launch.failures import LOGS_VARIABLE, failures, forget_failures
from cifarscale.launch.rank_launcher import CALL_VARIABLE, THREADS_VARIABLE, Ended
from cifarscale.launch.run import call_of, prepare, run
from cifarscale.runs.options import RunOptions
from cifarscale.runs.run_folder import RunFolder
from cifarscale.tasks.base import PreparedRun
from cifarscale.training.signals import handling, leave_at_once, leaving_on_signals

log = logging.getLogger(__name__)


def announce(prepared: PreparedRun) -> None:
    """Tells of the folder of a run that is to begin."""
    log.info("run folder %s", short_path(prepared.run_dir))


def run_here(prepared: PreparedRun, nproc: int, logs: Path | None = None) -> dict[str, Any]:
    """Runs what is prepared in this process, or by ranks that are forked from one that imports torch.

    Args:
        nproc: ranks. With one it is this process.
        logs: folder for what ranks print and leave; None for the run folder's.
    Returns: the result.
    Raises: what a rank raises; Interrupted if it was asked to stop.
    """
    if nproc < 1:
        raise ConfigError(f"nproc = {nproc} is not valid; it takes at least 1")
    if prepared.options.device == "cuda":
        from cifarscale.distributed.device import check_gpus

        check_gpus(nproc)  # or a folder would be made for nothing
    prepared.make_folder()
    if nproc == 1:
        with leaving_on_signals():
            from cifarscale.distributed.cpu_pool import settings_kept

            with settings_kept():
                return run(prepared.run_dir, prepared.options)
    cores = len(os.sched_getaffinity(0))
    if prepared.options.device != "cuda" and nproc > 2 * cores:
        log.warning("%d processes share %d cores and their memory: each takes about 0.5 GB", nproc, cores)
    run_locally(call_of(prepared), nproc, logs or prepared.run_dir / "logs")
    result = RunFolder(prepared.run_dir).result()
    assert result is not None
    return result


def run_once(
    recipe: Recipe, data: str | None, options: RunOptions, nproc: int, logs: Path | None = None
) -> dict[str, Any]:
    """Prepares and runs a recipe in a temporary folder, of which the result alone remains.

    Args:
        data: a data set or a folder of shards; None for the recipe's own.
        nproc, logs: as in `run_here`.
    Raises: what `prepare` and `run_here` raise.
    """
    with tempfile.TemporaryDirectory() as scratch:
        return run_here(prepare(recipe, Path(scratch, "run"), data, options), nproc, logs)


def run_locally(call: Call, nproc: int, logs: Path) -> None:
    """Runs a call in `nproc` processes; rank 0 writes to this terminal, the others to `logs/rank-N.log`.

    SIGTERM and Ctrl-C are passed on to all ranks. If this process is killed, so are they.

    Raises: what the rank that failed first raised; Interrupted if they stopped because they were asked to.
    """
    cores = len(os.sched_getaffinity(0))
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
        THREADS_VARIABLE: os.environ.get("OMP_NUM_THREADS", str(max(1, cores // nproc))),
        "OMP_NUM_THREADS": "1",
    }
    environment.setdefault("GLOO_SOCKET_IFNAME", "lo")
    report, write_end = os.pipe()
    try:
        with _launcher(environment, write_end) as launcher:
            os.close(write_end)
            ending = _read(report)
            code = launcher.wait()
    finally:
        os.close(report)
        meeting.unlink(missing_ok=True)
    if ending:
        raise _failure(Ended(*json.loads(ending)), logs)
    if code:
        raise _failure(Ended(0, code), logs)


@contextmanager
def _launcher(environment: dict[str, str], report: int) -> Iterator[subprocess.Popen[bytes]]:
    """The process that forks the ranks, in a session of its own: a Ctrl-C reaches it through us alone, and counts once.

    SIGTERM and the first Ctrl-C are passed on; a second Ctrl-C kills the ranks, also where they wait for a peer.
    """
    requested = False
    process: subprocess.Popen[bytes] | None = None

    def pass_on(signum: int, frame: FrameType | None) -> None:
        nonlocal requested
        again = requested and signum == signal.SIGINT
        requested = True
        if process is not None:
            process.send_signal(signal.SIGKILL if again else signum)
        if again:
            leave_at_once()

    handlers = dict.fromkeys((signal.SIGTERM, signal.SIGINT), pass_on)
    with handling(handlers):
        try:
            signal.pthread_sigmask(signal.SIG_BLOCK, handlers)  # what comes before there is a process to pass it on to
            try:
                process = subprocess.Popen(
                    [sys.executable, "-m", "cifarscale.launch.rank_launcher", str(report)],
                    env=environment,
                    start_new_session=True,
                    pass_fds=(report,),
                )
            finally:
                signal.pthread_sigmask(signal.SIG_UNBLOCK, handlers)
            yield process
        finally:
            if process is not None:
                process.kill()  # its ranks end with it
                process.wait()


def _read(pipe: int) -> bytes:
    """All that is written to a pipe, until nobody can write to it any more."""
    with open(pipe, "rb", closefd=False) as file:
        return file.read()


def _failure(ended: Ended, logs: Path) -> CifarscaleError:
    """The error to show: a rank that was killed, or what is told in our own words, before what others made of that."""
    causes = failures(logs)
    if ended.code < 0 and all(failure.rank != ended.rank for failure in causes):
        return DistributedError(
            f"rank {ended.rank} was ended by {signal.Signals(-ended.code).name}. "
            "The last checkpoint stands: run the same command again to resume"
        )
    if not causes:
        return DistributedError(f"rank {ended.rank} ended with code {ended.code}; see {logs}")
    cause = causes[0]
    if cause.exit_code == EXIT_INTERRUPTED:
        return Interrupted(cause.message)
    if cause.expected:
        return CifarscaleError(cause.message)
    return CifarscaleError(f"rank {cause.rank}: {cause.message} (see {logs}/rank-{cause.rank}.log)")

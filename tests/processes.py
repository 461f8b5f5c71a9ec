"""Processes that tests have started, looked up in /proc."""

import multiprocessing
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

from runs import PATIENCE_S


def forkserver() -> ForkServerContext:
    """Processes that begin by a fork of one with a single thread, which has imported torch."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["cifarscale.training.run", "pytest"])
    return context


def run_ranks(function: Callable[..., None], world_size: int, *arguments: Any) -> None:
    """Calls `function(rank, *arguments)` in as many processes. Raises: AssertionError if one fails."""
    context = forkserver()
    environment = dict(os.environ)
    ranks = [context.Process(target=_run, args=(environment, function, rank, arguments)) for rank in range(world_size)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(PATIENCE_S)
    assert [process.exitcode for process in ranks] == [0] * world_size


def _run(environment: dict[str, str], function: Callable[..., None], rank: int, arguments: tuple[Any, ...]) -> None:
    """In this test's environment: the server that forks has that of whichever test has started it."""
    os.environ.clear()
    os.environ.update(environment)
    function(rank, *arguments)


def run_command(folder: Path, *arguments: object, code: int = 0, **options: Any) -> "subprocess.CompletedProcess[str]":
    """`cifarscale` in a folder, ended with this exit code, and what it printed.

    Args:
        options: further ones of subprocess.run, such as `env`.
    """
    done = subprocess.run(
        [sys.executable, "-m", "cifarscale", *map(str, arguments)],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
        **options,
    )
    assert done.returncode == code, done.stderr
    return done


def children(pid: int) -> list[int]:
    tasks = Path(f"/proc/{pid}/task")
    found = [of_process(str(task / "children")) for task in tasks.iterdir()] if tasks.is_dir() else []
    return [int(child) for text in found for child in text.split()]


def descendants(pid: int) -> list[int]:
    return [each for child in children(pid) for each in (child, *descendants(child))]


def wait_until_gone(pids: Iterable[int]) -> None:
    """Returns when none of the processes of these ids runs."""
    deadline = time.monotonic() + PATIENCE_S
    for pid in pids:
        while (stat := of_process(f"/proc/{pid}/stat")) and stat.rpartition(b")")[2].split()[0] not in (b"Z", b"X"):
            assert time.monotonic() < deadline, f"process {pid} goes on"
            time.sleep(0.01)


def having(variables: Mapping[str, str]) -> dict[int, dict[str, str]]:
    """The processes with these values in their environment, by id: the whole environment of each."""
    found = {}
    for process in Path("/proc").glob("[0-9]*"):
        lines = os.fsdecode(of_process(f"{process}/environ")).split("\0")
        environment = dict(line.split("=", 1) for line in lines if "=" in line)
        if variables.items() <= environment.items():
            found[int(process.name)] = environment
    return found


def of_process(path: str) -> bytes:
    """A file of /proc; nothing if the process has ended."""
    try:
        return Path(path).read_bytes()
    except OSError:
        return b""

"""Processes that tests have started, looked up in /proc."""

import time
from collections.abc import Iterable
from pathlib import Path

from runs import PATIENCE_S


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


def of_process(path: str) -> bytes:
    """A file of /proc; nothing if the process has ended."""
    try:
        return Path(path).read_bytes()
    except OSError:
        return b""

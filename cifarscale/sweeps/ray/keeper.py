"""The process beside a Ray that ends it: `python -m cifarscale.sweeps.ray.keeper FOLDER OPTION…`."""

import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

MARK = "CIFARSCALE_RAY_FOLDER"
"""In the environment of all processes of one node's Ray, and of no others."""
_GRACE_S = 10
_POLL_S = 0.1


def keep(folder: Path, options: Sequence[str]) -> None:
    """Runs Ray until stdin ends, or Ray does, and ends all of its processes then."""
    # SLURM may send its warning to every process of a job; Ray's inherit that it is nothing to them.
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    with (folder / "out").open("wb") as output:
        ray = subprocess.Popen(
            [sys.executable, "-m", "cifarscale.sweeps.ray.starter", *options],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    while ray.poll() is None and not select.select([sys.stdin], [], [], _POLL_S)[0]:
        pass
    ended_by_itself = ray.poll() is not None
    ray.terminate()
    try:
        ray.wait(_GRACE_S)
    except subprocess.TimeoutExpired:
        ray.kill()
        ray.wait()
    deadline = time.monotonic() + _GRACE_S
    while left := _processes_of(folder):
        for pid in left:
            _kill(pid)
        if time.monotonic() > deadline:
            break
        time.sleep(_POLL_S)
    if not ended_by_itself:  # else the starter wants to read why
        shutil.rmtree(folder, ignore_errors=True)


def _processes_of(folder: Path) -> list[int]:
    """This Ray's own processes: only they inherit the keeper's mark."""
    mark = f"{MARK}={folder}".encode()
    pids = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if int(process.name) != os.getpid() and mark in (process / "environ").read_bytes().split(b"\0"):
                pids.append(int(process.name))
        except OSError:
            continue  # it has ended, or is another user's
    return pids


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


if __name__ == "__main__":
    keep(Path(sys.argv[1]), sys.argv[2:])

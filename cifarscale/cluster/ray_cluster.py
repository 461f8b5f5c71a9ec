"""A Ray of our own: on this machine, or over the nodes of a SLURM job; nothing of it outlives whoever asked for it.

Each node has its own ports and its own folder with a short path, since sockets lie in it. A keeper, a small process
beside each Ray, waits for the end of a pipe that its starter holds open: however the starter ends, the keeper then
ends exactly the processes of this Ray, and removes its folder.
"""

import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from cifarscale.errors import ClusterError

START_TIMEOUT_S = 120
"""How long a node's Ray may take to start; it reads some hundred megabytes of Python."""
_MARK = "CIFARSCALE_RAY_FOLDER"
"""In the environment of all processes of one node's Ray, and of no others."""
_GRACE_S = 10
_POLL_S = 0.1
_OBJECT_STORE_BYTES = 256 * 2**20
"""Trials pass each other settings and figures, no data sets."""


@dataclass(frozen=True)
class RayAddress:
    """Where a Ray listens, and what one needs to be let in.

    Attributes:
        address: for `ray.init(address=…)`, as host:port.
        token_file: holds the token; readable by its owner only.
        folder: this node's, with Ray's logs; gone when Ray has ended.
    """

    address: str
    token_file: Path
    folder: Path

    @property
    def environment(self) -> dict[str, str]:
        """To be set before ray is imported: it reads them once."""
        return _environment(self.token_file)


@contextmanager
def ray_cluster(num_cpus: int, num_gpus: int = 0, timeout_s: float = START_TIMEOUT_S) -> Iterator[RayAddress]:
    """A private Ray on this machine, for as long as the block runs; inside it os.environ lets `ray.init` in.

    Raises: ClusterError if Ray does not start within the time; the message ends with its last lines.
    """
    folder = Path(tempfile.mkdtemp(prefix="csray-", dir="/tmp"))
    token_file = folder / "token"
    token_file.touch(mode=0o600)
    token_file.write_text(secrets.token_hex(32), encoding="ascii")
    resources = ["--num-cpus", str(num_cpus), "--num-gpus", str(num_gpus)]
    head = ["--head", "--port", "0", "--node-ip-address", "127.0.0.1", "--include-dashboard", "false", *resources]
    keeper = _keep(folder, head, _environment(token_file))
    previous = {name: os.environ.get(name) for name in _environment(token_file)}
    try:
        address = RayAddress(_wait_for_address(folder, keeper, timeout_s), token_file, folder)
        os.environ.update(address.environment)
        yield address
    finally:
        for name, value in previous.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
        assert keeper.stdin is not None
        keeper.stdin.close()
        keeper.wait()


def _environment(token_file: Path) -> dict[str, str]:
    return {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token_file),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",  # draining is for Ray Serve
    }


def _keep(folder: Path, options: Sequence[str], environment: dict[str, str]) -> subprocess.Popen[bytes]:
    """The keeper of one node's Ray, in a session of its own, so that a Ctrl-C is not for it."""
    command = [sys.executable, "-m", "cifarscale.cluster.ray_cluster", str(folder), *options]
    command += ["--temp-dir", str(folder / "ray"), "--object-store-memory", str(_OBJECT_STORE_BYTES)]
    command += ["--min-worker-port", "0", "--max-worker-port", "0", "--dashboard-agent-listen-port", "0"]
    return subprocess.Popen(
        [*command, "--disable-usage-stats", "--block"],
        env=os.environ | environment | {_MARK: str(folder)},
        stdin=subprocess.PIPE,
        start_new_session=True,
    )


def _wait_for_address(folder: Path, keeper: subprocess.Popen[bytes], timeout_s: float) -> str:
    """What Ray writes when it answers; it tells so in its output only later."""
    deadline, output, published = time.monotonic() + timeout_s, folder / "out", folder / "ray/ray_current_cluster"
    while not (published.exists() and output.exists() and "--block" in output.read_text(errors="replace")):
        if keeper.poll() is not None or time.monotonic() > deadline:
            said = output.read_text(errors="replace").strip() if output.exists() else ""
            raise ClusterError(f"Ray did not start within {timeout_s:.0f} s: {said[-500:] or 'it said nothing'}")
        time.sleep(_POLL_S)
    return published.read_text(encoding="utf-8").strip()


def _keeper(folder: Path, options: Sequence[str]) -> None:
    """Runs Ray until stdin ends or Ray does, then ends all of its processes, and removes the folder when stdin ends."""
    with (folder / "out").open("wb") as output:
        ray = subprocess.Popen(
            [sys.executable, "-m", "ray.scripts.scripts", "start", *options],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    sys.stdin.buffer.read()
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
    shutil.rmtree(folder, ignore_errors=True)


def _processes_of(folder: Path) -> list[int]:
    """This Ray's own processes: only they inherit the keeper's mark."""
    mark = f"{_MARK}={folder}".encode()
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if int(process.name) != os.getpid() and mark in (process / "environ").read_bytes().split(b"\0"):
                found.append(int(process.name))
        except OSError:
            continue  # it has ended, or is another user's
    return found


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


if __name__ == "__main__":
    _keeper(Path(sys.argv[1]), sys.argv[2:])

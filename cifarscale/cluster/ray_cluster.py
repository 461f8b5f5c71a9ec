"""A Ray of our own: on this machine, or over the nodes of a SLURM job; nothing of it outlives whoever asked for it.

Each node has its own ports and its own folder with a short path, since sockets lie in it. A keeper, a small process
beside each Ray, waits for the end of a pipe that its starter holds open: however the starter ends, the keeper then
ends exactly the processes of this Ray, and removes its folder.
"""

import json
import os
import secrets
import select
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
from cifarscale.files import write_json_atomically
from cifarscale.rendezvous import ADDRESS_VARIABLE, NODES_VARIABLE, ranks_from_environment

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
    token = secrets.token_hex(32)
    with _node(["--head", "--port", "0", "--node-ip-address", "127.0.0.1"], token, num_cpus, num_gpus) as node:
        yield RayAddress(_wait_for_address(node, timeout_s), node.token_file, node.folder)


@contextmanager
def ray_over_nodes(
    meeting: Path, num_cpus: int, num_gpus: int = 0, timeout_s: float = START_TIMEOUT_S
) -> Iterator[RayAddress | None]:
    """One Ray over the nodes of a job with one task a node: rank 0 has its address, when all nodes have joined.

    The other ranks have None, and leave the block at its end only when rank 0 has left it.

    Args:
        meeting: a folder that the nodes share and only its owner reads, new at each start of the job: the token and
            the address are passed on in it.
    Raises: ClusterError naming the nodes that have not joined within the time, or if a node's Ray ends early.
    """
    ranks, published, end = ranks_from_environment(), meeting / "ray.json", meeting / "ray.end.json"
    if ranks.is_first:
        options = ["--head", "--port", "0", "--node-ip-address", os.environ[ADDRESS_VARIABLE]]
        token = secrets.token_hex(32)
        with _node(options, token, num_cpus, num_gpus) as node:
            try:
                address = _wait_for_address(node, timeout_s)
                _write_for_owner(published, {"address": address, "token": token})
                _wait_for_nodes(meeting, ranks.world_size, node, timeout_s)
                yield RayAddress(address, node.token_file, node.folder)
            finally:
                write_json_atomically(end, {})
        return
    deadline = time.monotonic() + timeout_s
    while not published.exists():
        if time.monotonic() > deadline:
            raise ClusterError(f"rank 0 did not start Ray within {timeout_s:.0f} s: it wrote no {published}")
        time.sleep(_POLL_S)
    about = json.loads(published.read_text(encoding="utf-8"))
    with _node(["--address", about["address"]], about["token"], num_cpus, num_gpus) as node:
        _wait_for_start(node, timeout_s)
        write_json_atomically(_joined(meeting, ranks.rank), {})
        yield None
        while not end.exists():
            if node.keeper.poll() is not None:
                raise ClusterError(f"Ray has ended on the node of rank {ranks.rank}: {node.said()}")
            time.sleep(_POLL_S)


@dataclass(frozen=True)
class _Node:
    folder: Path
    keeper: subprocess.Popen[bytes]

    @property
    def token_file(self) -> Path:
        return self.folder / "token"

    def said(self) -> str:
        output = self.folder / "out"
        return output.read_text(errors="replace") if output.exists() else ""


@contextmanager
def _node(options: Sequence[str], token: str, num_cpus: int, num_gpus: int) -> Iterator[_Node]:
    """This node's Ray, being started."""
    folder = Path(tempfile.mkdtemp(prefix="csray-", dir="/tmp"))
    token_file = folder / "token"
    token_file.touch(mode=0o600)
    token_file.write_text(token, encoding="ascii")
    environment = _environment(token_file)
    if "--head" in options:
        options = [*options, "--include-dashboard", "false", "--temp-dir", str(folder / "ray")]
    resources = ["--num-cpus", str(num_cpus), "--num-gpus", str(num_gpus)]
    keeper = _keep(folder, [*options, *resources], environment)
    previous = {name: os.environ.get(name) for name in environment}
    os.environ.update(environment)
    try:
        yield _Node(folder, keeper)
    finally:
        for name, value in previous.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
        assert keeper.stdin is not None
        keeper.stdin.close()
        keeper.wait()
        shutil.rmtree(folder, ignore_errors=True)


def _joined(meeting: Path, rank: int) -> Path:
    return meeting / f"ray.joined-{rank}.json"


def _wait_for_nodes(meeting: Path, num_nodes: int, node: _Node, timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while missing := [rank for rank in range(1, num_nodes) if not _joined(meeting, rank).exists()]:
        if node.keeper.poll() is not None:
            raise ClusterError(f"Ray has ended on the node of rank 0: {node.said()[-500:]}")
        if time.monotonic() > deadline:
            names = os.environ.get(NODES_VARIABLE, "").split(",")
            named = [names[rank] if rank < len(names) else f"rank {rank}" for rank in missing]
            raise ClusterError(
                f"no Ray from {', '.join(named)} within {timeout_s:.0f} s. See the logs of these ranks; "
                "cifarscale doctor checks whether the nodes reach each other"
            )
        time.sleep(_POLL_S)


def _write_for_owner(path: Path, about: dict[str, str]) -> None:
    new = path.with_suffix(".new")
    new.unlink(missing_ok=True)
    new.touch(mode=0o600)
    new.write_text(json.dumps(about), encoding="utf-8")
    new.replace(path)


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
    command += ["--object-store-memory", str(_OBJECT_STORE_BYTES)]
    command += ["--min-worker-port", "0", "--max-worker-port", "0", "--dashboard-agent-listen-port", "0"]
    return subprocess.Popen(
        [*command, "--disable-usage-stats", "--block"],
        env=os.environ | environment | {_MARK: str(folder)},
        stdin=subprocess.PIPE,
        start_new_session=True,
    )


def _wait_for_address(node: _Node, timeout_s: float) -> str:
    _wait_for_start(node, timeout_s)
    return (node.folder / "ray/ray_current_cluster").read_text(encoding="utf-8").strip()


def _wait_for_start(node: _Node, timeout_s: float) -> None:
    """Ray says --block when it answers."""
    deadline = time.monotonic() + timeout_s
    while "--block" not in node.said():
        if node.keeper.poll() is not None or time.monotonic() > deadline:
            said = node.said().strip()[-500:] or "it said nothing"
            raise ClusterError(f"Ray did not start within {timeout_s:.0f} s: {said}")
        time.sleep(_POLL_S)


def _keeper(folder: Path, options: Sequence[str]) -> None:
    """Runs Ray until stdin ends, or Ray does, and ends all of its processes then."""
    with (folder / "out").open("wb") as output:
        ray = subprocess.Popen(
            [sys.executable, "-m", "ray.scripts.scripts", "start", *options],
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

"""A Ray of our own: on this machine, or over the nodes of a job; nothing of it outlives whoever asked for it.

Each node has its own ports and its own folder with a short path, since sockets lie in it. A keeper, a small process
beside each Ray, waits for the end of a pipe that its starter holds open: however the starter ends, the keeper then
ends exactly the processes of this Ray, and removes its folder.
"""

import json
import logging
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from cifarscale.distributed.ranks import ADDRESS_VARIABLE, FILE_VARIABLE, NODES_VARIABLE, Ranks
from cifarscale.errors import ClusterError, Interrupted
from cifarscale.launch.failures import LOGS_VARIABLE
from cifarscale.runs.files import is_listed, write_json_atomically
from cifarscale.sweeps.ray.keeper import MARK

log = logging.getLogger(__name__)

START_TIMEOUT_S = 600
"""How long a node's Ray may take to start; it reads some hundred megabytes of Python."""
RESTARTS = 3
"""How often a node's Ray is started again that has ended by itself."""
_POLL_S = 0.1
_OBJECT_STORE_BYTES = 80 * 2**20
"""Near Ray's least: trials pass each other settings and metrics, no data sets."""
_SETTINGS = {
    "RAY_AUTH_MODE": "token",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_enable_metrics_collection": "0",
    "RAY_prestart_worker_first_driver": "0",  # these wait for tasks, and a trial is an actor, which has a new one
    "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",  # draining is for Ray Serve
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # paths in recipes are as seen from where the user stands
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # a trial that failed reports its reason instead
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "TUNE_FUNCTION_THREAD_TIMEOUT_S": "20",
}
"""Ray reads most of them while it is imported."""
_NOT_FOR_TRIALS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "OMP_NUM_THREADS", "CIFARSCALE_CALL")
"""Variables of the job's ranks; a trial is a job of its own. Ray itself says how many cores a trial has."""


@dataclass(frozen=True)
class RayAddress:
    """Where a Ray listens, for `ray.init(address=…)`; the environment lets in who asks from this process.

    Attributes:
        address: as host:port.
        folder: this node's, with Ray's logs; gone when Ray has ended.
    """

    address: str
    folder: Path


@cache
def _token() -> str:
    """One for all Rays of this process: Ray remembers the first that it has read."""
    return secrets.token_hex(32)


@contextmanager
def ray_cluster(num_cpus: int, num_gpus: int = 0, timeout_s: float = START_TIMEOUT_S) -> Iterator[RayAddress]:
    """A private Ray on this machine, for as long as the block runs. Import Ray inside it: it reads its settings then.

    Raises: ClusterError if Ray does not start within the time, where the message ends with its last lines; or if this
        process is connected to another one.
    """
    if (loaded := sys.modules.get("ray")) is not None and loaded.is_initialized():
        raise ClusterError("this process is connected to a Ray, and a sweep starts its own. Call ray.shutdown() first")
    options = ["--head", "--port", "0", "--node-ip-address", "127.0.0.1"]
    with _node(options, _token(), num_cpus, num_gpus, timeout_s) as node:
        yield RayAddress(node.address, node.folder)


@contextmanager
def ray_over_nodes(
    ranks: Ranks,
    meeting: Path,
    num_cpus: int,
    num_gpus: int = 0,
    timeout_s: float = START_TIMEOUT_S,
    join_timeout_s: float = START_TIMEOUT_S,
) -> Iterator[RayAddress]:
    """One Ray over the nodes of a job with one task a node: for rank 0, while all the others are in `serve_node`.

    Args:
        meeting: a folder that the nodes share, new at each start of the job; the token is passed on in it, readable by
            its owner alone.
        timeout_s: until this node's Ray answers.
        join_timeout_s: until those of the other nodes have joined it, from then on.
    Raises: ClusterError naming the nodes that have not joined within the time.
    """
    address, token = os.environ.get(ADDRESS_VARIABLE) or socket.gethostname(), _token()
    how: dict[str, Any] = {}
    meeting.mkdir(parents=True, exist_ok=True, mode=0o700)
    published = meeting / "ray.json"
    options = ["--head", "--port", "0", "--node-ip-address", address]
    with _node(options, token, num_cpus, num_gpus, timeout_s) as node:
        try:
            _write_for_owner(published, {"address": node.address, "token": token})
            _wait_for_nodes(meeting, ranks.world_size, node, join_timeout_s)
            yield RayAddress(node.address, node.folder)
        except Interrupted as stopped:
            how = {"interrupted": str(stopped), "to_continue": stopped.to_continue}
            raise
        finally:
            write_json_atomically(_end(meeting), how)
            published.unlink(missing_ok=True)


def serve_node(
    ranks: Ranks, meeting: Path, num_cpus: int, num_gpus: int = 0, timeout_s: float = START_TIMEOUT_S
) -> None:
    """What the other ranks do: their node's Ray, until rank 0 has left its block; started again if it dies.

    Raises: ClusterError if rank 0 has not started within the time, or this node's Ray dies again and again; Interrupted
        if rank 0 did.
    """
    published, deadline = meeting / "ray.json", time.monotonic() + timeout_s
    while not is_listed(published):
        if is_listed(_end(meeting)):
            return _follow(meeting)
        if time.monotonic() > deadline:
            raise ClusterError(f"rank 0 did not start Ray within {timeout_s:.0f} s: it wrote no {published}")
        time.sleep(_POLL_S)
    connection = json.loads(published.read_text(encoding="utf-8"))
    head: str = connection["address"]
    options = ["--address", head, "--node-ip-address", _own_address(head)]
    for _ in range(1 + RESTARTS):
        with _node(options, connection["token"], num_cpus, num_gpus, timeout_s) as node:
            write_json_atomically(_joined(meeting, ranks.rank), {})
            while node.keeper.poll() is None:
                if is_listed(_end(meeting)):
                    return _follow(meeting)
                time.sleep(_POLL_S)
            log.warning("Ray has ended on the node of rank %d, and is started again", ranks.rank)
    raise ClusterError(f"Ray has ended {1 + RESTARTS} times on the node of rank {ranks.rank}: {node.output()[-500:]}")


def _follow(meeting: Path) -> None:
    """Raises: Interrupted if rank 0 did."""
    how = json.loads(_end(meeting).read_text(encoding="utf-8"))
    if how:
        raise Interrupted(how["interrupted"], how["to_continue"])


@dataclass(frozen=True)
class _Node:
    folder: Path
    keeper: subprocess.Popen[bytes]

    def output(self) -> str:
        file = self.folder / "out"
        return file.read_text(errors="replace").strip() if file.exists() else ""

    @property
    def address(self) -> str:
        """A head's own."""
        return (self.folder / "ray/ray_current_cluster").read_text(encoding="utf-8").strip()

    def answers(self, deadline: float) -> bool:
        """Waits until it does, or has ended."""
        while "--block" not in self.output():  # what it says then
            if self.keeper.poll() is not None or time.monotonic() > deadline:
                return False
            time.sleep(_POLL_S)
        return True


@contextmanager
def _node(options: Sequence[str], token: str, num_cpus: int, num_gpus: int, timeout_s: float) -> Iterator[_Node]:
    """This node's Ray; started again if it ends before it answers.

    Raises: ClusterError if it has not answered within the time, or has ended too often; the message ends with its last
        lines.
    """
    deadline, output = time.monotonic() + timeout_s, ""
    for _ in range(1 + RESTARTS):
        with _starting_node(options, token, num_cpus, num_gpus) as node:
            if "--head" in options:
                import ray.tune  # noqa: F401  takes seconds, and the node's Ray takes as many
            if node.answers(deadline):
                yield node
                return
            output = node.output()[-500:] or "it said nothing"
            if time.monotonic() > deadline:
                raise ClusterError(f"Ray did not start within {timeout_s:.0f} s: {output}")
        log.info("Ray has ended while it started, and is started again: %s", output)
    raise ClusterError(f"Ray has ended {1 + RESTARTS} times while it started: {output}")


@contextmanager
def _starting_node(options: Sequence[str], token: str, num_cpus: int, num_gpus: int) -> Iterator[_Node]:
    folder = Path(tempfile.mkdtemp(prefix="csray-", dir="/tmp"))
    token_file = folder / "token"
    token_file.touch(mode=0o600)
    token_file.write_text(token, encoding="ascii")
    environment = _SETTINGS | {"RAY_AUTH_TOKEN_PATH": str(token_file)}
    if "--head" in options:
        options = [*options, "--include-dashboard", "false", "--no-monitor", "--temp-dir", str(folder / "ray")]
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


def _keep(folder: Path, options: Sequence[str], environment: dict[str, str]) -> subprocess.Popen[bytes]:
    """The keeper of one node's Ray, in a session of its own, so that a Ctrl-C is not for it."""
    command = [sys.executable, "-m", "cifarscale.sweeps.ray.keeper", str(folder), *options]
    command += ["--object-store-memory", str(_OBJECT_STORE_BYTES)]
    command += ["--min-worker-port", "0", "--max-worker-port", "0", "--dashboard-agent-listen-port", "0"]
    command += ["--include-log-monitor", "false"]  # Ray's logs stay in the folder
    ranks = (*_NOT_FOR_TRIALS, FILE_VARIABLE, ADDRESS_VARIABLE, NODES_VARIABLE, LOGS_VARIABLE)
    inherited = {name: value for name, value in os.environ.items() if name not in ranks}
    return subprocess.Popen(
        [*command, "--disable-usage-stats", "--block"],
        env=inherited | environment | {MARK: str(folder)},
        stdin=subprocess.PIPE,
        start_new_session=True,
    )


def _own_address(head: str) -> str:
    """This node's address, as the head sees it; nothing is sent."""
    host, _, port = head.rpartition(":")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        any_socket.connect((host, int(port)))
        own: str = any_socket.getsockname()[0]
    return own


def _joined(meeting: Path, rank: int) -> Path:
    return meeting / f"ray.joined-{rank}.json"


def _end(meeting: Path) -> Path:
    return meeting / "ray.end.json"


def _wait_for_nodes(meeting: Path, num_nodes: int, node: _Node, timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while missing := [rank for rank in range(1, num_nodes) if not is_listed(_joined(meeting, rank))]:
        if node.keeper.poll() is not None:
            raise ClusterError(f"Ray has ended on the node of rank 0: {node.output()[-500:]}")
        if time.monotonic() > deadline:
            names = os.environ.get(NODES_VARIABLE, "").split(",")
            named = [names[rank] if rank < len(names) else f"rank {rank}" for rank in missing]
            raise ClusterError(
                f"no Ray from {', '.join(named)} within {timeout_s:.0f} s. See the logs of these ranks; "
                "cifarscale doctor checks whether the nodes reach each other"
            )
        time.sleep(_POLL_S)


def _write_for_owner(path: Path, content: dict[str, str]) -> None:
    new = path.with_suffix(".new")
    new.unlink(missing_ok=True)
    new.touch(mode=0o600)
    new.write_text(json.dumps(content), encoding="utf-8")
    new.replace(path)

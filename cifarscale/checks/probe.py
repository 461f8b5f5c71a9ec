"""What `cifarscale doctor` has each rank of a job do: look around on its node, meet the others, add up with them."""

import hashlib
import os
import platform
import shutil
import socket
import statistics
import subprocess
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

import requests
import torch
import torch.distributed as dist
from pydantic import TypeAdapter
from torch.distributed import Store  # type: ignore[attr-defined]

from cifarscale.data.manifest import MANIFEST_NAME, Manifest
from cifarscale.distributed.device import pick_device
from cifarscale.distributed.group import Group, process_group
from cifarscale.distributed.ranks import NODES_VARIABLE, Ranks, ranks_from_environment
from cifarscale.distributed.rendezvous import meet
from cifarscale.errors import CifarscaleError, ConfigError, DataError, typed
from cifarscale.evaluation.features import official_weights
from cifarscale.launch.call import Call
from cifarscale.runs.files import write_json_atomically
from cifarscale.runs.options import Timeouts

Stage = Literal["looked", "met", "done"]
Reach = Literal["here", "reachable", "unreachable", "unasked"]

TOKEN_NAME = "token.txt"
"""A file with a word that only the doctor knows, in the folder that the nodes are to share."""
SUM_MB = 64
"""Size of what is summed over the ranks, in MiB: about the gradients of a network of 16 million weights."""
TIMEOUTS = Timeouts(collective=60, control=60)
WANDB_URL = "https://api.wandb.ai"
_REACH_TIMEOUT_S = 5
_SUMS, _CLOCKS = 3, 5
"""How often each is measured; a median is told."""


@dataclass(frozen=True)
class Report:
    """What one rank has found, as far as it has come.

    Attributes:
        torch: its version, and what it was built for.
        torchvision_error: why it cannot be imported, as a torch of another build has it; empty if it can.
        driver: of the GPUs; empty without any.
        gpus: names of those that this rank sees.
        token: what it reads in TOKEN_NAME; empty if it cannot.
        shards: digest of the manifest, and of the names and sizes of the files that it names; empty if unreadable.
        shards_error: why that is so.
        unresolved: names of nodes for which it has no address.
        free_gb: space left where runs are written, in 1e9 bytes.
        weights, wandb: asked by the first rank of each node; W&B is here where it logs offline.
        stage: how far it has come.
        error: why it came no further, in one line.
        meeting_s: until all had come.
        clock_s: how far its clock is ahead of rank 0's.
        sum_is_right: of numbers over all ranks; None with one rank.
        sum_s: median time of one sum.
    """

    rank: int
    node: str
    python: str
    torch: str
    torchvision_error: str
    driver: str
    gpus: tuple[str, ...]
    token: str
    shards: str
    shards_error: str
    unresolved: tuple[str, ...]
    free_gb: float
    weights: Reach
    wandb: Reach
    stage: Stage = "looked"
    error: str = ""
    meeting_s: float = 0
    clock_s: float = 0
    backend: str = ""
    sum_is_right: bool | None = None
    sum_s: float = 0


def load_reports(folder: Path) -> list[Report]:
    """The reports in a folder, by rank."""
    adapter = TypeAdapter(Report)
    reports = [adapter.validate_json(path.read_bytes()) for path in folder.glob("rank-*.probe.json")]
    return sorted(reports, key=lambda report: report.rank)


def probing(folder: Path, shards: Path | None, device: str, meeting_s: float) -> Call:
    """What each rank of a job calls to look at its node, and to leave what it finds in `folder`."""
    arguments = {"folder": str(folder), "shards": str(shards) if shards else None, "device": device}
    return Call("cifarscale.checks.probe:probe_rank", arguments | {"meeting_s": meeting_s})


def probe_rank(folder: str, shards: str | None, device: str, meeting_s: float) -> None:
    """`probe`, with plain values."""
    probe(Path(folder), Path(shards) if shards else None, device, meeting_s)


def probe(folder: Path, shards: Path | None, device: str, meeting_s: float) -> None:
    """Looks around, meets the other ranks, and leaves a report in `folder` after each stage, however it ends.

    Args:
        shards: the folder of shards that jobs read.
        device: `cuda` to sum on GPUs if every rank has one, or `cpu`.
        meeting_s: how long to wait for the other ranks.
    """
    ranks = ranks_from_environment()
    report = _look_around(ranks, folder, shards)
    _leave(report, folder)
    try:
        start = time.monotonic()
        store = meet(ranks, meeting_s) if ranks.world_size > 1 else None
        report = replace(report, stage="met", meeting_s=time.monotonic() - start)
        _leave(report, folder)
        here = _device(device, ranks, store)
        with process_group(ranks, here, store, TIMEOUTS) as group:
            report = replace(_with_the_others(report, group, here), stage="done")
    except (CifarscaleError, RuntimeError) as error:
        report = replace(report, error=str(error).strip().partition("\n")[0])
    _leave(report, folder)


def _device(wanted: str, ranks: Ranks, store: Store | None) -> torch.device:
    """The device to sum on; CPUs where a rank lacks a GPU, so that the sum tells of the network at least."""
    try:
        here, has_one = pick_device(wanted, ranks.local_rank), True
    except ConfigError:
        here, has_one = torch.device("cpu"), False
    if store is None:
        return here
    store.set(f"gpus/{ranks.rank}", str(has_one))
    everywhere = all(store.get(f"gpus/{rank}") == b"True" for rank in range(ranks.world_size))
    return here if everywhere else torch.device("cpu")


def shards_digest(shards: Path) -> str:
    """Of the manifest, and of the names and sizes of the files that it names. Raises: DataError."""
    manifest = Manifest.load(shards)
    try:
        digest = hashlib.sha256((shards / MANIFEST_NAME).read_bytes())
        for split in manifest.splits.values():
            for entry in split.shards:
                digest.update(f"{entry.name} {(shards / entry.name).stat().st_size}\n".encode())
    except OSError as error:
        raise DataError(
            f"cannot read {error.filename}: {error.strerror}. Run: cifarscale shards verify {typed(shards)}"
        ) from error
    return digest.hexdigest()[:16]


def reach(url: str) -> Reach:
    """Whether a server answers, whatever it says; through a proxy where the environment names one."""
    try:
        requests.head(url, timeout=_REACH_TIMEOUT_S)
    except requests.RequestException:
        return "unreachable"
    return "reachable"


def _look_around(ranks: Ranks, folder: Path, shards: Path | None) -> Report:
    digest, shards_error = "", ""
    try:
        digest = shards_digest(shards) if shards else ""
    except DataError as error:
        shards_error = str(error).partition(". ")[0]
    try:
        token = (folder / TOKEN_NAME).read_text(encoding="utf-8")
    except OSError:
        token = ""
    asks = ranks.local_rank == 0
    weights: Reach = "unasked"
    torchvision_error = ""
    try:
        url, path = official_weights()
        weights = "here" if path.is_file() else reach(url) if asks else "unasked"
    except (ImportError, RuntimeError) as error:
        torchvision_error = str(error)
    return Report(
        rank=ranks.rank,
        node=os.environ.get("SLURMD_NODENAME") or socket.gethostname(),
        python=platform.python_version(),
        torch=f"{torch.__version__}, CUDA {torch.version.cuda}" if torch.version.cuda else torch.__version__,
        driver=_driver(),
        gpus=tuple(torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())),
        torchvision_error=torchvision_error,
        token=token,
        shards=digest,
        shards_error=shards_error,
        unresolved=tuple(name for name in _node_names() if not _resolves(name)),
        free_gb=shutil.disk_usage(folder).free / 1e9,
        weights=weights,
        wandb=_wandb() if asks else "unasked",
    )


def _wandb() -> Reach:
    if os.environ.get("WANDB_MODE") in ("offline", "disabled"):
        return "here"
    return reach(os.environ.get("WANDB_BASE_URL", WANDB_URL))


def _with_the_others(report: Report, group: Group, device: torch.device) -> Report:
    """The report with what only all ranks together can tell."""
    ranks = group.ranks
    if ranks.world_size == 1:
        return report
    numbers = torch.arange(SUM_MB * 2**18, dtype=torch.float32, device=device) % 1024  # exact in float32, summed, too
    total = numbers + ranks.rank
    dist.all_reduce(total)
    expected = numbers * ranks.world_size + ranks.world_size * (ranks.world_size - 1) // 2
    is_right = torch.equal(total, expected)
    times, clock = [], []
    for _ in range(_SUMS):
        group.wait()
        start = time.monotonic()
        dist.all_reduce(total)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.monotonic() - start)
    for _ in range(_CLOCKS):
        group.wait()
        clock.append(time.time())
    ahead = statistics.median(mine - first for mine, first in zip(clock, group.from_first(clock), strict=True))
    backend = "nccl" if device.type == "cuda" else "gloo"
    return replace(report, clock_s=ahead, backend=backend, sum_is_right=is_right, sum_s=statistics.median(times))


def _leave(report: Report, folder: Path) -> None:
    write_json_atomically(folder / f"rank-{report.rank}.probe.json", asdict(report))


def _node_names() -> list[str]:
    return list(dict.fromkeys(name for name in os.environ.get(NODES_VARIABLE, "").split(",") if name))


def _resolves(name: str) -> bool:
    try:
        return bool(socket.getaddrinfo(name, None))
    except OSError:
        return False


def _driver() -> str:
    """Version of NVIDIA's driver; empty where there is none."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.partition("\n")[0].strip() if done.returncode == 0 else ""

"""The device of a rank: which one it is, what else of its kind there is, and how it computes in float32."""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from cifarscale.distributed.cpu_pool import available_cores
from cifarscale.errors import ConfigError

_DRIVER = Path("/sys/module/nvidia/version")


def pick_device(wanted: str, local_rank: int = 0) -> torch.device:
    """The device for `cpu`, `cuda` or `auto`.

    Args:
        local_rank: of the node. It counts the GPUs, but where a task sees only its own.
    Raises: ConfigError if CUDA is asked for and there is none for this rank.
    """
    count = _num_gpus()
    if wanted == "cpu" or (wanted == "auto" and not count):
        return torch.device("cpu")
    if count == 1:
        local_rank = 0  # SLURM shows each task its own alone; that no other rank has it is checked when they meet
    check_gpus(local_rank + 1)
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read once, when cuBLAS starts
    return torch.device("cuda", local_rank)


def check_gpus(num_ranks: int) -> None:
    """Raises: ConfigError unless this process sees a GPU for each of the ranks of a node."""
    count = _num_gpus()
    if count < num_ranks:
        fewer = f"Run {count} ranks a node, or with --device cpu" if count else "Run with --device cpu"
        raise ConfigError(
            f"each rank needs a GPU, so {num_ranks} of them, and torch {torch.__version__} sees {count}. {fewer}"
        )


def _num_gpus() -> int:
    """How many this process sees."""
    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def device_name(device: torch.device) -> str:
    """The device as people call it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cores = available_cores()
    return f"CPU, {cores} core{'s' if cores > 1 else ''}"


@contextmanager
def arithmetic(device: torch.device, tf32: bool = False, repeatable: bool = True) -> Iterator[None]:
    """How a GPU computes in float32 inside the block; nothing changes for a CPU. For one thread at a time.

    Args:
        tf32: rounds the inputs of products to 10 bits, as torch's convolutions do by default; else they are IEEE's.
        repeatable: algorithms that give the same bits each time.
    Raises: RuntimeError, by torch, inside the block, if a repeatable operation is wanted that there is none for.
    """
    if device.type != "cuda":
        yield
        return
    products: tuple[Any, ...] = (torch.backends.cuda.matmul, torch.backends.cudnn.conv)  # type: ignore[attr-defined]
    before = [each.fp32_precision for each in products]
    were_repeatable = torch.are_deterministic_algorithms_enabled()
    only_warned = torch.is_deterministic_algorithms_warn_only_enabled()
    deterministic: Any = torch.utils.deterministic
    filled = deterministic.fill_uninitialized_memory
    try:
        for each in products:
            each.fp32_precision = "tf32" if tf32 else "ieee"
        torch.use_deterministic_algorithms(repeatable)
        deterministic.fill_uninitialized_memory = False  # a guard against reading it, which costs time
        yield
    finally:
        for each, precision in zip(products, before, strict=True):
            each.fp32_precision = precision
        torch.use_deterministic_algorithms(were_repeatable, warn_only=only_warned)
        deterministic.fill_uninitialized_memory = filled


@dataclass(frozen=True)
class Hardware:
    """What a rank computes on; the same kinds, with the same versions, give the same bits.

    Attributes:
        uuid: of the GPU; empty for a CPU.
    """

    host: str
    uuid: str
    kind: str
    versions: str

    @classmethod
    def of(cls, device: torch.device) -> "Hardware":
        if device.type == "cpu":
            return cls(socket.gethostname(), "", f"CPU with {torch.backends.cpu.get_cpu_capability()}", _torch())
        uuid = str(torch.cuda.get_device_properties(device).uuid)
        driver = _DRIVER.read_text().strip() if _DRIVER.is_file() else "unknown"
        cudnn = torch.backends.cudnn.version()  # type: ignore[no-untyped-call]
        versions = f"{_torch()}, cuDNN {cudnn}, driver {driver}"
        return cls(socket.gethostname(), uuid, torch.cuda.get_device_name(device), versions)

    def as_plain(self) -> dict[str, str]:
        return asdict(self)


def _torch() -> str:
    return f"torch {torch.__version__}"


def check_unshared(ranks: list[Hardware]) -> None:
    """Raises: ConfigError if two ranks have one GPU; they would wait for each other."""
    owner: dict[str, int] = {}
    for rank, hardware in enumerate(ranks):
        if hardware.uuid and owner.setdefault(hardware.uuid, rank) != rank:
            raise ConfigError(
                f"ranks {owner[hardware.uuid]} and {rank} have the same GPU of {hardware.host} ({hardware.kind}, "
                f"{hardware.uuid}). Ask for a GPU for each task, or run with --device cpu"
            )


def mixture(ranks: list[Hardware]) -> str:
    """One line if the ranks compute on different kinds of device or by different versions; else nothing."""
    kinds: dict[tuple[str, str], list[int]] = {}
    for rank, hardware in enumerate(ranks):
        kinds.setdefault((hardware.kind, hardware.versions), []).append(rank)
    if len(kinds) < 2:
        return ""
    parts = (f"{kind} ({versions}) on {_numbers(numbers)}" for (kind, versions), numbers in kinds.items())
    return f"the ranks compute on different devices, so another set of them gives other last bits: {'; '.join(parts)}"


def _numbers(ranks: list[int]) -> str:
    shown = ", ".join(map(str, ranks[:8]))
    return f"rank {shown}" if len(ranks) == 1 else f"ranks {shown}{' …' if len(ranks) > 8 else ''}"

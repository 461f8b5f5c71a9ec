"""The processes of one job: who this one is, and what they agree on."""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, cast

import torch
import torch.distributed as dist

from cifarscale.errors import ConfigError, DistributedError

RENDEZVOUS_TIMEOUT_S = 120


@dataclass(frozen=True)
class Ranks:
    """This process among those of its job. `local_rank` counts within the node."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0

    @property
    def is_first(self) -> bool:
        return self.rank == 0


def ranks_from_environment() -> Ranks:
    """What a launcher (ours, or torchrun) says in RANK, WORLD_SIZE and LOCAL_RANK; one process alone if nothing."""
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    rank = int(os.environ.get("RANK", "0"))
    return Ranks(rank, world_size, int(os.environ.get("LOCAL_RANK", rank)))


def pick_device(wanted: str, local_rank: int = 0) -> torch.device:
    """The device for `cpu`, `cuda` or `auto`.

    Raises: ConfigError if CUDA is asked for and there is none for this rank.
    """
    if wanted == "auto":
        wanted = "cuda" if torch.cuda.is_available() else "cpu"
    if wanted == "cpu":
        return torch.device("cpu")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if local_rank >= count:
        raise ConfigError(
            f"--device cuda needs a GPU for local rank {local_rank}, and torch {torch.__version__} sees {count}. "
            "Run with --device cpu, or with --device auto, which takes a GPU where there is one"
        )
    return torch.device("cuda", local_rank)


class Group:
    """Collectives among the ranks of a job; with one process each of them is the identity.

    Control messages go over gloo on the CPU whatever the device, so that they never wait for a GPU's queue.
    """

    def __init__(self, ranks: Ranks, control: dist.ProcessGroup | None = None) -> None:
        self.ranks = ranks
        self._control = control

    def sum_(self, tensor: torch.Tensor) -> torch.Tensor:
        """Sums a CPU tensor over the ranks, in place."""
        if self.ranks.world_size > 1:
            dist.all_reduce(tensor, group=self._control)
        return tensor

    def max_later(self, value: int) -> "PendingMax":
        """Starts finding the largest of the ranks' values; `result()` waits for it."""
        tensor = torch.tensor(value)
        if self.ranks.world_size == 1:
            return PendingMax(tensor, None)
        return PendingMax(tensor, dist.all_reduce(tensor, op=dist.ReduceOp.MAX, group=self._control, async_op=True))

    def from_first(self, value: Any) -> Any:
        """Rank 0's value on every rank; what the others pass in is ignored."""
        if self.ranks.world_size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0, group=self._control)
        return box[0]

    def raise_together(self, error: Exception | None) -> None:
        """Raises on every rank if any rank has an error, so that none waits for one that is gone."""
        if self.ranks.world_size == 1:
            errors: list[Exception | None] = [error]
        else:
            errors = [None] * self.ranks.world_size
            dist.all_gather_object(errors, error, group=self._control)
        for other in errors:
            if other is not None:
                raise other

    def wait(self) -> None:
        """Returns when all ranks have come here."""
        if self.ranks.world_size > 1:
            dist.barrier(group=self._control)


@dataclass(frozen=True)
class PendingMax:
    """A maximum over the ranks that is being found."""

    tensor: torch.Tensor
    work: Any

    def result(self) -> int:
        if self.work is not None:
            self.work.wait()
        return int(self.tensor)


@contextmanager
def process_group(ranks: Ranks, device: torch.device) -> Iterator[Group]:
    """The job's ranks connected: nccl between GPUs, gloo between CPUs; taken down cleanly at the end.

    Raises: DistributedError if not all ranks arrive within RENDEZVOUS_TIMEOUT_S.
    """
    if ranks.world_size == 1:
        yield Group(ranks)
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    try:
        dist.init_process_group(
            "nccl" if device.type == "cuda" else "gloo",
            rank=ranks.rank,
            world_size=ranks.world_size,
            timeout=timedelta(seconds=RENDEZVOUS_TIMEOUT_S),
            device_id=device if device.type == "cuda" else None,
        )
    except (dist.DistError, RuntimeError, ValueError) as error:
        address = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        raise DistributedError(
            f"rank {ranks.rank} of {ranks.world_size} on {socket.gethostname()} could not meet the others at {address} "
            f"within {RENDEZVOUS_TIMEOUT_S} s ({str(error).splitlines()[0]})"
        ) from error
    try:
        control = cast(dist.ProcessGroup, dist.new_group(backend="gloo")) if device.type == "cuda" else None
        yield Group(ranks, control)
    finally:
        dist.destroy_process_group()

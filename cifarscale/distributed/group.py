"""The processes of one job: who this one is, and what they agree on."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, cast

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import PrefixStore, Store

from cifarscale.distributed.cpu_pool import available_cores
from cifarscale.distributed.ranks import Ranks
from cifarscale.distributed.rendezvous import meet
from cifarscale.errors import ConfigError, note_time

COLLECTIVE_TIMEOUT_S = 600
"""How long a rank waits in a collective for one that hangs; one that is gone is noticed at once."""


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


def device_name(device: torch.device) -> str:
    """The device as people call it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU, {available_cores()} cores"


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
def process_group(
    ranks: Ranks, device: torch.device, store: Store | None = None, timeout_s: float = COLLECTIVE_TIMEOUT_S
) -> Iterator[Group]:
    """The job's ranks connected: nccl between GPUs, gloo between CPUs; taken down cleanly at the end.

    Args:
        store: where the ranks have met already; None has them meet now.
        timeout_s: how long a rank waits in a collective for one that hangs.
    Raises: DistributedError if not all ranks meet in time.
    """
    if ranks.world_size == 1:
        yield Group(ranks)
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group(
        "nccl" if device.type == "cuda" else "gloo",
        store=PrefixStore("group", store or meet(ranks)),
        rank=ranks.rank,
        world_size=ranks.world_size,
        timeout=timedelta(seconds=timeout_s),
        device_id=device if device.type == "cuda" else None,
    )
    try:
        control = cast(dist.ProcessGroup, dist.new_group(backend="gloo")) if device.type == "cuda" else None
        yield Group(ranks, control)
    except Exception as error:
        note_time(error)  # for the other ranks fail, too, when they lose the connection to this one
        raise
    finally:
        dist.destroy_process_group()

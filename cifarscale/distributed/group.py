"""The processes of one job: who this one is, and what they agree on."""

import json
import logging
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import PrefixStore, Store

from cifarscale.distributed.device import Hardware, check_unshared, mixture
from cifarscale.distributed.ranks import Ranks
from cifarscale.distributed.rendezvous import meet
from cifarscale.errors import note_time
from cifarscale.runs.options import Timeouts

log = logging.getLogger(__name__)

T = TypeVar("T")
Transfers = Mapping[int, Sequence[torch.Tensor]]
"""Tensors by the rank that they go to, or come from."""
TIMEOUTS = Timeouts()
TEAR_DOWN_S = 10
"""How long the end of the connections may take after an error, when other ranks may never answer."""


def transfer(sent: Transfers, received: Transfers, group: dist.ProcessGroup | None = None) -> None:
    """Sends tensors to ranks, and fills those that are received from ranks; between each two of them in order."""
    operations = [
        *(dist.P2POp(dist.isend, tensor, rank, group) for rank, tensors in sent.items() for tensor in tensors),
        *(dist.P2POp(dist.irecv, tensor, rank, group) for rank, tensors in received.items() for tensor in tensors),
    ]
    for work in dist.batch_isend_irecv(operations) if operations else ():
        work.wait()


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

    def max_later(self, *values: int) -> "PendingMax":
        """Starts finding the largest of the ranks' values, for each; `result()` waits for them."""
        tensor = torch.tensor(values)
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
        for other in self.of_all(error):
            if other is not None:
                raise other

    def of_all(self, value: T) -> list[T]:
        """Every rank's value, on every rank."""
        if self.ranks.world_size == 1:
            return [value]
        values: list[Any] = [None] * self.ranks.world_size
        dist.all_gather_object(values, value, group=self._control)
        return values

    def transfer(self, sent: Transfers, received: Transfers) -> None:
        """`transfer` of tensors on the CPU."""
        transfer(sent, received, self._control)

    def wait(self) -> None:
        """Returns when all ranks have come here."""
        if self.ranks.world_size > 1:
            dist.barrier(group=self._control)


@dataclass(frozen=True)
class PendingMax:
    """Maxima over the ranks that are being found."""

    tensor: torch.Tensor
    work: Any

    def result(self) -> list[int]:
        if self.work is not None:
            self.work.wait()
        largest: list[int] = self.tensor.tolist()
        return largest


@contextmanager
def process_group(
    ranks: Ranks, device: torch.device, store: Store | None = None, timeouts: Timeouts = TIMEOUTS
) -> Iterator[Group]:
    """The job's ranks connected: nccl between GPUs, gloo between CPUs; taken down cleanly at the end.

    Args:
        store: where the ranks have met already; None has them meet now.
    Raises: DistributedError if not all ranks meet in time; ConfigError if two of them have one GPU.
    """
    if ranks.world_size == 1:
        yield Group(ranks)
        return
    on_gpu = device.type == "cuda"
    if on_gpu:
        torch.cuda.set_device(device)
    store = store or meet(ranks, timeouts.rendezvous)
    _compare_hardware(PrefixStore("hardware", store), ranks, device)
    dist.init_process_group(
        "nccl" if on_gpu else "gloo",
        store=PrefixStore("group", store),
        rank=ranks.rank,
        world_size=ranks.world_size,
        timeout=timedelta(seconds=timeouts.collective),
        device_id=device if on_gpu else None,
    )
    try:
        # Between CPUs one group serves for both.
        control = dist.new_group(backend="gloo", timeout=timedelta(seconds=timeouts.control)) if on_gpu else None
        yield Group(ranks, cast(dist.ProcessGroup | None, control))
    except BaseException as error:
        if isinstance(error, Exception):
            note_time(error)  # for the other ranks fail, too, when they lose the connection to this one
        _leave_at_once(on_gpu)
        raise
    dist.destroy_process_group()


def _compare_hardware(store: Store, ranks: Ranks, device: torch.device) -> None:
    """Raises: ConfigError if two ranks have one GPU. Rank 0 warns of devices that differ."""
    store.set(str(ranks.rank), json.dumps(Hardware.of(device).as_plain()))
    found = [Hardware(**json.loads(store.get(str(rank)))) for rank in range(ranks.world_size)]
    check_unshared(found)
    if ranks.is_first and (mixed := mixture(found)):
        log.warning("%s", mixed)


def _leave_at_once(on_gpu: bool) -> None:
    """Ends the connections after an error: what is under way is given up, and no rank is waited for for long."""
    leave = dist.distributed_c10d._abort_process_group if on_gpu else dist.destroy_process_group
    thread = threading.Thread(target=leave, daemon=True)
    thread.start()
    thread.join(TEAR_DOWN_S)

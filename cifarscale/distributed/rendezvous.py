"""How the ranks of a job find each other: at a port that rank 0 holds already when it tells the others of it.

A launcher of ours names a file; rank 0 opens a port of the system's choice, which no other job can hold then, and
writes it there. Under torchrun the address comes from MASTER_ADDR and MASTER_PORT.
"""

import json
import os
import socket
import time
from datetime import timedelta
from pathlib import Path

from torch.distributed import (  # type: ignore[attr-defined]
    DistError,
    Store,
    TCPStore,
)
from torch.distributed.rendezvous import rendezvous

from cifarscale.distributed.ranks import ADDRESS_VARIABLE, FILE_VARIABLE, NODES_VARIABLE, Ranks
from cifarscale.errors import DistributedError
from cifarscale.runs.files import is_listed, write_json_atomically

_POLL_S = 0.1


def meet(ranks: Ranks, timeout_s: float) -> Store:
    """The store that all ranks of the job share, when all of them have come.

    Raises: DistributedError if one has not within the time, naming who is missing.
    """
    deadline = time.monotonic() + timeout_s
    try:
        store = _open(ranks, deadline)
        store.set(_arrival(ranks.rank), "")
        try:
            store.wait([_arrival(rank) for rank in range(ranks.world_size)], _until(deadline))
        except DistError:
            missing = [rank for rank in range(ranks.world_size) if not store.check([_arrival(rank)])]
            raise DistributedError(
                f"{_named(ranks)} waited {timeout_s:.0f} s for {', '.join(map(_of_node, missing))}. "
                "See the logs of these; cifarscale doctor checks whether the nodes reach each other"
            ) from None
    except (DistError, RuntimeError, ValueError) as error:
        raise DistributedError(
            f"{_named(ranks)} could not meet the others within {timeout_s:.0f} s ({str(error).splitlines()[0]}). "
            "Run: cifarscale doctor"
        ) from error
    return store


def _open(ranks: Ranks, deadline: float) -> Store:
    file = os.environ.get(FILE_VARIABLE)
    if file is None:
        store: Store
        store, _, _ = next(rendezvous("env://", ranks.rank, ranks.world_size, timeout=_until(deadline)))
        return store
    if ranks.is_first:
        address = os.environ.get(ADDRESS_VARIABLE) or socket.gethostname()
        store = TCPStore(address, 0, is_master=True, timeout=_until(deadline), wait_for_workers=False)
        write_json_atomically(Path(file), {"address": address, "port": store.port})
        return store
    address, port = _published(ranks, Path(file), deadline)
    return TCPStore(address, port, is_master=False, timeout=_until(deadline))


def _published(ranks: Ranks, file: Path, deadline: float) -> tuple[str, int]:
    """What rank 0 has written."""
    while not is_listed(file):
        if time.monotonic() > deadline:
            raise DistributedError(
                f"{_named(ranks)} waited in vain for {_of_node(0)} to write {file}: it did not start, or its node does "
                "not share that folder. Run: cifarscale doctor"
            )
        time.sleep(_POLL_S)
    endpoint = json.loads(file.read_text(encoding="utf-8"))
    return endpoint["address"], endpoint["port"]


def _until(deadline: float) -> timedelta:
    return timedelta(seconds=max(1.0, deadline - time.monotonic()))


def _arrival(rank: int) -> str:
    return f"arrived/{rank}"


def _named(ranks: Ranks) -> str:
    return f"rank {ranks.rank} of {ranks.world_size} on {socket.gethostname()}"


def _of_node(rank: int) -> str:
    nodes = os.environ.get(NODES_VARIABLE, "").split(",")
    return f"rank {rank} ({nodes[rank]})" if len(nodes) > rank and nodes[rank] else f"rank {rank}"

"""Who this process is among those of its job, and the variables by which a launcher tells it."""

import os
from dataclasses import dataclass

FILE_VARIABLE = "CIFARSCALE_RENDEZVOUS"
"""Names the file that rank 0 writes its address to."""
ADDRESS_VARIABLE = "CIFARSCALE_ADDRESS"
"""Address of rank 0's node, as the other nodes reach it."""
NODES_VARIABLE = "CIFARSCALE_NODES"
"""The nodes' names by rank, with commas between them."""


@dataclass(frozen=True)
class Ranks:
    """This process among those of its job. `local_rank` counts within the node."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    on_one_node: bool = True
    """Whether all of them are."""

    @property
    def is_first(self) -> bool:
        return self.rank == 0


def ranks_from_environment() -> Ranks:
    """What a launcher (ours, or torchrun) says in RANK, WORLD_SIZE and so on; one process alone if nothing."""
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    rank = int(os.environ.get("RANK", "0"))
    of_node = int(os.environ.get("LOCAL_WORLD_SIZE", world_size))
    return Ranks(rank, world_size, int(os.environ.get("LOCAL_RANK", rank)), of_node == world_size)

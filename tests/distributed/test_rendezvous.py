"""Ranks in real processes find each other, and one that waits in vain says for whom."""

import json
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from processes import forkserver

from cifarscale.distributed.interface import interface_address
from cifarscale.distributed.ranks import ADDRESS_VARIABLE, FILE_VARIABLE, NODES_VARIABLE, Ranks
from cifarscale.distributed.rendezvous import meet
from cifarscale.errors import ConfigError, DistributedError

pytestmark = pytest.mark.distributed


def come(rank: int, world_size: int, file: str, nodes: str, timeout_s: float, answers: Any) -> None:
    os.environ |= {FILE_VARIABLE: file, ADDRESS_VARIABLE: "127.0.0.1", NODES_VARIABLE: nodes}
    try:
        store = meet(Ranks(rank, world_size), timeout_s)
        store.set(f"hello from {rank}", "")
        store.wait([f"hello from {other}" for other in range(world_size)])
        answers.put((rank, "met"))
        store.set(f"bye from {rank}", "")
        store.wait([f"bye from {other}" for other in range(world_size)])
    except DistributedError as error:
        answers.put((rank, str(error)))


@pytest.fixture
def gather(tmp_path: Path) -> Callable[..., dict[int, str]]:
    """What becomes of the ranks that come, out of `world_size`."""

    def gather(ranks: list[int], world_size: int, timeout_s: float = 60, name: str = "meeting") -> dict[int, str]:
        context = forkserver()
        answers = context.Queue()
        nodes = ",".join(f"node{rank // 2}" for rank in range(world_size))
        arguments = (world_size, str(tmp_path / name), nodes, timeout_s, answers)
        processes = [context.Process(target=come, args=(rank, *arguments)) for rank in ranks]
        for process in processes:
            process.start()
        found = dict(answers.get(timeout=120) for _ in processes)
        for process in processes:
            process.join(60)
        return found

    return gather


def test_all_ranks_meet_at_the_port_that_rank_0_writes_down(
    gather: Callable[..., dict[int, str]], tmp_path: Path
) -> None:
    assert gather([0, 1, 2, 3], 4) == dict.fromkeys(range(4), "met")
    assert json.loads((tmp_path / "meeting").read_text())["port"] > 0


def test_two_jobs_on_one_machine_do_not_meet_each_other(gather: Callable[..., dict[int, str]]) -> None:
    """Each holds its port before it tells anybody: they cannot be the same."""
    assert gather([0, 1], 2, name="one") == gather([0, 1], 2, name="other") == {0: "met", 1: "met"}


def test_who_is_missing_is_named_with_its_node(gather: Callable[..., dict[int, str]]) -> None:
    found = gather([0, 1, 3], 4, timeout_s=10)
    for rank in (0, 1, 3):
        assert "waited 10 s for rank 2 (node1)" in found[rank] or "could not meet the others" in found[rank]
    assert "rank 2 (node1)" in found[0]
    assert "cifarscale doctor" in found[0]


def test_without_rank_0_the_others_say_what_they_wait_for(gather: Callable[..., dict[int, str]]) -> None:
    found = gather([1], 2, timeout_s=2)
    assert "waited in vain for rank 0 (node0) to write" in found[1]
    assert "cifarscale doctor" in found[1]


def test_an_interface_has_an_address_or_is_named_with_those_that_there_are() -> None:
    assert interface_address("lo") == "127.0.0.1"
    with pytest.raises(ConfigError, match=rf"'ib9' has no IPv4 address on {socket.gethostname()}; it has: .*lo"):
        interface_address("ib9")

"""A trial of several ranks: each a worker of Ray's, in the trial's own options group. Importing this loads Ray.

They are plain actors, which end with the trial: Ray Train's controller and its joint reports have no part to play,
since our ranks meet as everywhere, at a port that rank 0 writes into the run folder. So K workers compute what K ranks
do elsewhere.
"""

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray

from cifarscale.distributed.ranks import ADDRESS_VARIABLE, FILE_VARIABLE
from cifarscale.sweeps.ray.rank import STATE, Report, run_rank
from cifarscale.sweeps.trials import FAILED

_LOOK_EVERY_S = 0.5


class Mailbox:
    """An actor by which rank 0 hands metrics to the trial's own process, which alone may report to Ray Tune."""

    def __init__(self) -> None:
        self._metrics: list[dict[str, Any]] = []

    def put(self, metrics: dict[str, Any]) -> None:
        """Adds metrics."""
        self._metrics.append(metrics)

    def take(self) -> list[dict[str, Any]]:
        """The metrics since the last call."""
        taken, self._metrics = self._metrics, []
        return taken


class Rank:
    """An actor that is one rank of a trial."""

    def address(self) -> str:
        """Of its node."""
        return str(ray.util.get_node_ip_address())  # type: ignore[no-untyped-call]

    def run(self, config: dict[str, Any], environment: dict[str, str], mailbox: Any) -> dict[str, Any]:
        """Runs the trial's job as the rank that the environment names. Returns: how it ended, as `run_rank` does."""
        os.environ.update(environment)
        return run_rank(config, lambda metrics: ray.get(mailbox.put.remote(metrics)))


def run_ranks(config: dict[str, Any], report: Report) -> dict[str, Any]:
    """Runs a trial as `config["workers"]` ranks.

    Args:
        report: takes the metrics of rank 0 while it trains; what it raises ends the ranks.
    Returns: how it ended, as `run_rank` does: for rank 0, or for the rank that failed first.
    Raises: RayError if a worker died.
    """
    meeting = Path(config["run_dir"]) / f"logs/rendezvous.{uuid.uuid4().hex}.json"
    meeting.parent.mkdir(parents=True, exist_ok=True)
    with _workers(config) as (ranks, mailbox):
        address = ray.get(ranks[0].address.remote())
        common = {
            "WORLD_SIZE": str(len(ranks)),
            "LOCAL_RANK": "0",  # of the one device that Ray shows a worker
            FILE_VARIABLE: str(meeting),
            ADDRESS_VARIABLE: address,
        }
        if address == "127.0.0.1":
            common["GLOO_SOCKET_IFNAME"] = "lo"
        running = {
            actor.run.remote(config, common | {"RANK": str(rank)}, mailbox): rank for rank, actor in enumerate(ranks)
        }
        ends: dict[int, dict[str, Any]] = {}
        try:
            while running:
                ended, _ = ray.wait(list(running), timeout=_LOOK_EVERY_S)
                for metrics in ray.get(mailbox.take.remote()):
                    report(metrics)
                for task in ended:
                    rank = running.pop(task)
                    ends[rank] = ray.get(task)
                    if ends[rank][STATE] == FAILED:
                        return ends[rank]
        finally:
            meeting.unlink(missing_ok=True)
        return ends[0]


@contextmanager
def _workers(config: dict[str, Any]) -> Iterator[tuple[list[Any], Any]]:
    """The ranks' actors and the mailbox, which end with the block."""
    rank: Any = ray.remote(Rank)
    mailbox: Any = ray.remote(Mailbox)
    resources = {"num_cpus": config["cpus_per_worker"], "num_gpus": config["gpus_per_worker"]}
    actors = [rank.options(**resources).remote() for _ in range(config["workers"])]
    box = mailbox.options(num_cpus=0).remote()
    try:
        yield actors, box
    finally:
        for actor in (*actors, box):
            ray.kill(actor)

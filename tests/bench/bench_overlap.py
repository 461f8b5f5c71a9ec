"""What an exchange of gradients beside the backward pass saves, between two processes of one core each, over gloo.

    python tests/bench/bench_overlap.py [--steps 40]

Between the processes there is the memory of this machine, which is no network. As root, a link of a given rate:

    unshare --net sh -c 'ip link set lo up
        tc qdisc add dev lo root tbf rate 1gbit burst 256kb latency 100ms
        GLOO_SOCKET_IFNAME=lo python tests/bench/bench_overlap.py'
"""

import os
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import click
import torch
import torch.distributed as dist
from rank_times import Times, rank_times
from torch import nn
from torch.nn import functional
from torchvision.models import resnet18

from cifarscale.distributed.cpu_pool import CpuPool
from cifarscale.distributed.group import Group
from cifarscale.distributed.ranks import Ranks
from cifarscale.training.microbatches import Microbatches

WARM_UP_STEPS = 3


def _convolutions() -> nn.Module:
    layers = [layer for _ in range(4) for layer in (nn.Conv2d(64, 64, 3, padding=1), nn.ReLU())]
    return nn.Sequential(nn.Conv2d(3, 64, 3, padding=1), nn.ReLU(), *layers, nn.Flatten(), nn.Linear(65536, 100))


NETWORKS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "ResNet-18": (lambda: resnet18(num_classes=100), 4),
    "convolutions": (_convolutions, 16),
}
"""And images of a rank and step."""


def _loss(name: str, networks: Mapping[str, nn.Module], part: Any, step: int) -> tuple[torch.Tensor, tuple[Any, ...]]:
    return functional.cross_entropy(networks[name](part[0]), part[1]), ()


def measure(rank: int, name: str, steps: int) -> Times:
    """Milliseconds of each way and step."""
    make, batch_size = NETWORKS[name]
    ways = {
        way: Microbatches(
            {"net": make()}, 2, Group(Ranks(rank, 2, rank, on_one_node=way == "at the end")), CpuPool(True, 1)
        )
        for way in ("at the end", "beside")
    }
    images, labels = torch.randn(batch_size, 3, 32, 32), torch.randint(100, (batch_size,))
    times: Times = {way: [] for way in ways}
    for step in range(WARM_UP_STEPS + steps):
        for way, microbatches in ways.items():
            dist.barrier()
            started = time.perf_counter()
            microbatches.begin_step()
            gradients, _ = microbatches.gradients("net", _loss, [(images, labels)], step)
            microbatches.exchange("net", gradients, ends_step=True)
            dist.barrier()
            if step >= WARM_UP_STEPS:
                times[way].append((time.perf_counter() - started) * 1000)
    return times


@click.command()
@click.option("--steps", default=40)
def main(steps: int) -> None:
    """Print milliseconds a step."""
    cores = len(os.sched_getaffinity(0))
    click.echo(f"{cores} cores, torch {torch.__version__}, gloo; ms a step, mean ± sd of {steps} in turn")
    for name in NETWORKS:
        times = rank_times(measure, 2, name, steps)
        shown = (f"{way} {statistics.mean(each):.1f} ± {statistics.stdev(each):.1f}" for way, each in times.items())
        click.echo(f"{name:>14}: {', '.join(shown)}")


if __name__ == "__main__":
    main()

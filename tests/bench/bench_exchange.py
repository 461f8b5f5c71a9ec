"""What the exchange of gradients costs between processes of this machine, over gloo: our ways and torch's, in turn.

- gather: every rank receives all gradients and adds them up along the tree;
- parts: ranks exchange parts, add these up along the tree, and hand the sums on: the way of any number of ranks;
- halving: recursive halving and doubling in the tree's own order: the way of a power of two;
- all-reduce: torch's own, in whatever order it takes.

    python tests/bench/bench_exchange.py [--rounds 5]
"""

import os
import statistics
import time
from collections.abc import Callable

import click
import torch
import torch.distributed as dist
from rank_times import Times, rank_times

from cifarscale.distributed.all_reduce import gather, halve, sum_in_parts
from cifarscale.distributed.group import transfer
from cifarscale.distributed.tree import Tree, folded

MEGABYTES = (0.01, 0.2, 4, 100)
WAYS: dict[str, Callable[[Tree, torch.Tensor, int, torch.Tensor], object]] = {
    "gather": lambda tree, rows, rank, scratch: gather(tree, rows),
    "parts": lambda tree, rows, rank, scratch: sum_in_parts(
        list(rows), tree.nodes, rank, lambda terms: folded(terms, torch.Tensor.add_)[1], rows[0], transfer, scratch
    ),
    "halving": lambda tree, rows, rank, scratch: halve(rows[0], rank, len(tree.nodes), scratch[: rows.numel() // 2]),
    "all-reduce": lambda tree, rows, rank, scratch: dist.all_reduce(rows[0]),
}


def measure(rank: int, world_size: int, megabytes: float, rounds: int) -> Times:
    """Milliseconds of each way and round."""
    torch.set_num_threads(1)
    tree = Tree(world_size, world_size)
    rows = torch.randn(1, int(megabytes * 1e6 / 4) // world_size * world_size)
    scratch = torch.zeros(rows.numel() // world_size * (world_size - 1))  # kept, as in training
    times: Times = {name: [] for name in WAYS}
    for i in range(rounds + 1):
        for name, way in WAYS.items():
            rows.normal_()
            dist.barrier()
            started = time.perf_counter()
            way(tree, rows, rank, scratch)
            dist.barrier()
            if i:  # the first is for connections and pages of memory
                times[name].append((time.perf_counter() - started) * 1000)
    return times


@click.command()
@click.option("--rounds", default=5)
def main(rounds: int) -> None:
    """Print milliseconds an exchange."""
    cores = len(os.sched_getaffinity(0))
    click.echo(f"{cores} cores, torch {torch.__version__}, gloo; ms an exchange, mean ± sd of {rounds} in turn")
    click.echo(f"{'ranks':>5} {'MB':>6}" + "".join(f"{name:>18}" for name in WAYS))
    for world_size in (2, 4):
        for megabytes in MEGABYTES:
            times = rank_times(measure, world_size, world_size, megabytes, rounds)
            shown = (f"{statistics.mean(each):.1f} ± {statistics.stdev(each):.1f}" for each in times.values())
            click.echo(f"{world_size:>5} {megabytes:>6}" + "".join(f"{text:>18}" for text in shown))


if __name__ == "__main__":
    main()

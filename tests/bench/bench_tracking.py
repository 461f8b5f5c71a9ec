"""What tracking costs: steps a second with no log at all, with metrics.jsonl alone, and with W&B offline beside it.

Short trainings of the three kinds in turn, in one process, each round in another order, so that what else the machine
does meets all alike. Steps a second leave out start-up, that of W&B too, which takes about a second of one core once.

On a machine that does other work these are not exact to a percent. So the time is taken as well that the training
itself spends on lines, and that W&B's thread computes, which shares the interpreter with it; both as part of the steps.

    python tests/bench/bench_tracking.py [--recipe cnn] [--steps 600] [--rounds 10] [--log-every 50] [--data synthetic]
"""

import logging
import os
import platform
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import click

KINDS = {"neither": "no log", "jsonl": "metrics.jsonl", "wandb": "and W&B offline"}


@dataclass
class Spent:
    """Seconds: of the training in its log's lines, and of W&B's thread on a core."""

    in_lines: float = 0.0
    in_thread: float = 0.0


def steps_per_second(kind: str, recipe: str, steps: int, log_every: int, data: str, device: str, spent: Spent) -> float:
    """Of one training."""
    import pytest
    from runs import run_recipe

    from cifarscale.config.load import load_training_recipe
    from cifarscale.data.build import locate_shards
    from cifarscale.runs.options import RunOptions
    from cifarscale.tasks.training import resolve
    from cifarscale.tracking.metrics import MetricsLog
    from cifarscale.tracking.sink import Sinks
    from cifarscale.tracking.wandb_folder import WandbFolder
    from cifarscale.tracking.wandb_sink import WandbSink

    shards = locate_shards(data)
    tracking = f"tracking.wandb={'offline' if kind == 'wandb' else 'off'}"
    changes = (f"training.max_steps={steps}", f"training.log_every={log_every}", "evaluation.every=0", tracking)
    resolved = resolve(load_training_recipe(recipe, changes), shards)
    start, follow, log = WandbSink.started, WandbSink._follow, Sinks.log

    def timed_log(self: Sinks, step: int, values: dict[str, float]) -> None:
        begun = time.perf_counter()
        log(self, step, values)
        spent.in_lines += time.perf_counter() - begun

    def timed_follow(self: WandbSink) -> None:
        begun = time.thread_time()
        follow(self)
        spent.in_thread += time.thread_time() - begun

    def start_and_wait(self: WandbSink, step: int) -> None:
        start(self, step)
        while not WandbFolder(run_dir).segments():
            time.sleep(0.05)

    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patched:
        run_dir = Path(folder) / "run"
        patched.setattr(WandbSink, "started", start_and_wait)
        patched.setattr(WandbSink, "_follow", timed_follow)
        patched.setattr(Sinks, "log", timed_log)
        if kind == "neither":
            patched.setattr(MetricsLog, "log", lambda *_: None)
        rate = run_recipe(resolved, run_dir, RunOptions(shards, device))["images_per_second"]
    return float(rate) / resolved.training.global_batch_size


@click.command()
@click.option("--recipe", default="cnn", show_default=True)
@click.option("--steps", default=600, show_default=True, help="Of each training.")
@click.option("--rounds", default=10, show_default=True)
@click.option("--log-every", default=50, show_default=True)
@click.option("--data", default="synthetic", show_default=True)
@click.option("--device", default="cpu", show_default=True)
def main(recipe: str, steps: int, rounds: int, log_every: int, data: str, device: str) -> None:
    """Print steps a second of each kind, and by how much a step takes longer than without a log."""
    import torch

    from cifarscale.log import console

    console.quiet = True
    logging.disable(logging.INFO)
    cores = len(os.sched_getaffinity(0))
    click.echo(f"{platform.processor() or platform.machine()}, {cores} cores, torch {torch.__version__}, {device}")
    click.echo(f"{recipe}, {rounds} rounds of {steps:,} steps, a line every {log_every} (mean ± standard error)")
    rates: dict[str, list[float]] = {kind: [] for kind in KINDS}
    spent = {kind: Spent() for kind in KINDS}
    steps_per_second("wandb", recipe, log_every, log_every, data, device, Spent())  # loads what is loaded once
    for i in range(rounds):
        for kind in (*list(KINDS)[i % 3 :], *list(KINDS)[: i % 3]):
            rates[kind].append(steps_per_second(kind, recipe, steps, log_every, data, device, spent[kind]))
    for kind, values in rates.items():
        costs = [100 * (without / rate - 1) for without, rate in zip(rates["neither"], values, strict=True)]
        cost = "" if kind == "neither" else f"   {statistics.mean(costs):+5.2f} ± {error(costs):.2f} %"
        click.echo(f"{KINDS[kind]:<16}{statistics.mean(values):7.1f} ± {error(values):4.1f} steps/s{cost}")
    for kind, times in spent.items():
        percent = 100 / sum(steps / rate for rate in rates[kind])
        click.echo(
            f"{KINDS[kind]:<16}the training spends {times.in_lines * percent:.3f} % of its steps on lines, "
            f"W&B's thread computes for {times.in_thread * percent:.3f} %"
        )


def error(values: list[float]) -> float:
    """Standard error of the mean."""
    return statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else 0.0


if __name__ == "__main__":
    main()

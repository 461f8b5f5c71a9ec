"""What tracking costs: steps a second with no log at all, with metrics.jsonl alone, and with W&B offline beside it.

Each measurement is a training in a process of its own, the three kinds in turn, each round in another order. Steps a
second are those of result.json: they leave out start-up and evaluation; what W&B does to start up happens while it
trains, and counts. The last column is by how much a step takes longer than without a log, over the rounds.

    python tests/bench/bench_tracking.py [--recipe cnn] [--steps 3000] [--rounds 5] [--log-every 50] [--data synthetic]
"""

import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import click

KINDS = ("neither", "jsonl", "wandb")
TITLES = {"neither": "no log", "jsonl": "metrics.jsonl", "wandb": "and W&B offline"}


def steps_per_second(kind: str, recipe: str, steps: int, log_every: int, data: str, device: str) -> float:
    """Of one training."""
    from cifarscale import run
    from cifarscale.config.load import load_recipe
    from cifarscale.data.build import locate_shards
    from cifarscale.run import Placement, resolve, run_job
    from cifarscale.tracking.metrics import MetricsLog

    class NoLog(MetricsLog):
        """Writes nothing."""

        def log(self, step: int, values: dict[str, float]) -> None:
            pass

    if kind == "neither":
        run.MetricsLog = NoLog  # type: ignore[misc]
    shards = locate_shards(data)
    changes = (
        f"training.max_steps={steps}",
        f"training.log_every={log_every}",
        "evaluation.every=0",
        f"tracking.wandb={'offline' if kind == 'wandb' else 'off'}",
    )
    with tempfile.TemporaryDirectory() as folder:
        loaded = resolve(load_recipe(recipe, changes), shards)
        rate = run_job(loaded, Path(folder) / "run", Placement(shards, device))["images_per_second"]
    return float(rate) / loaded.training.global_batch_size


@click.command()
@click.option("--recipe", default="cnn", show_default=True)
@click.option("--steps", default=3000, show_default=True)
@click.option("--rounds", default=5, show_default=True)
@click.option("--log-every", default=50, show_default=True)
@click.option("--data", default="synthetic", show_default=True)
@click.option("--device", default="cpu", show_default=True)
@click.option("--child", type=click.Choice(KINDS), hidden=True)
def main(recipe: str, steps: int, rounds: int, log_every: int, data: str, device: str, child: str | None) -> None:
    """Print steps a second of each kind, and what it costs."""
    if child:
        click.echo(json.dumps(steps_per_second(child, recipe, steps, log_every, data, device)))
        return
    import torch

    cores = len(os.sched_getaffinity(0))
    click.echo(f"{platform.processor() or platform.machine()}, {cores} cores, torch {torch.__version__}, {device}")
    click.echo(f"{recipe}, {steps:,} steps, a line every {log_every}, {rounds} rounds (mean ± standard deviation)")
    rates: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for i in range(rounds):
        for kind in (*KINDS[i % 3 :], *KINDS[: i % 3]):
            command = [sys.executable, __file__, "--child", kind, "--recipe", recipe, "--steps", str(steps)]
            command += ["--log-every", str(log_every), "--data", data, "--device", device]
            output = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=True)
            rates[kind].append(json.loads(output.stdout.splitlines()[-1]))
    for kind, values in rates.items():
        costs = [100 * (without / rate - 1) for without, rate in zip(rates["neither"], values, strict=True)]
        shown = f"{statistics.mean(values):7.1f} ± {spread(values):4.1f} steps/s"
        cost = "" if kind == "neither" else f"   {statistics.mean(costs):+5.2f} ± {spread(costs):.2f} %"
        click.echo(f"{TITLES[kind]:<16}{shown}{cost}")


def spread(values: list[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else 0.0


if __name__ == "__main__":
    main()

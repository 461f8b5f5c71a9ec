"""How long a start takes: from the command to the first step of training, for several numbers of ranks.

python tests/bench/bench_start.py [--rounds 3] [--nproc 1 --nproc 4]
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import click
import torch

from cifarscale.data.build import build_shards

SETTINGS = ("training.max_steps=3", "training.log_every=1", "evaluation.every=0")


def seconds_to_first_step(nproc: int, shards: Path, run_dir: Path) -> float:
    """From before `cifarscale train` is started until the line of step 1 is written."""
    command = [sys.executable, "-m", "cifarscale", "train", "demo", "--device", "cpu", "--nproc", str(nproc)]
    sets = [item for setting in SETTINGS for item in ("--set", setting)]
    began = time.time()
    subprocess.run([*command, "--data", str(shards), "--run-dir", str(run_dir), *sets], capture_output=True, check=True)
    with (run_dir / "metrics.jsonl").open(encoding="utf-8") as lines:
        return float(json.loads(next(lines))["time"]) - began


@click.command()
@click.option("--rounds", default=3, show_default=True)
@click.option("--nproc", "counts", multiple=True, type=int, default=(1, 2, 4), show_default=True)
def main(rounds: int, counts: tuple[int, ...]) -> None:
    """Print seconds to the first step, and how many times those of the first count."""
    with tempfile.TemporaryDirectory() as folder:
        shards = Path(folder) / "synthetic"
        build_shards("synthetic", shards)
        taken: dict[int, list[float]] = {nproc: [] for nproc in counts}
        for i in range(rounds):
            for nproc, seconds in taken.items():
                seconds.append(seconds_to_first_step(nproc, shards, Path(folder) / f"run-{nproc}-{i}"))
    click.echo(f"{len(os.sched_getaffinity(0))} cores, torch {torch.__version__}, {rounds} rounds, in turn")
    first = statistics.mean(taken[counts[0]])
    for nproc, seconds in taken.items():
        mean, spread = statistics.mean(seconds), statistics.stdev(seconds) if rounds > 1 else 0.0
        click.echo(f"--nproc {nproc}  {mean:6.2f} ± {spread:.2f} s  {mean / first:5.2f} x")


if __name__ == "__main__":
    main()

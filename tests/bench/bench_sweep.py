"""Trials an hour: `cifarscale sweep` against a bare Ray Tune that calls the same training function, in turn.

Both are whole commands, from starting Python to the last trial's result, Ray's start and end included. The bare one is
what a user would write: `ray.init()`, a function that trains and reports, `Tuner(…).fit()`. Both run the same trials,
which are those that the sweep has drawn, as many side by side as there are cores, on the drawn set.

    python tests/bench/bench_sweep.py [--num-trials 16] [--steps 500] [--rounds 3]
"""

import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import click
import ray
import torch

from cifarscale.data.build import build_shards
from cifarscale.distributed.cpu_pool import available_cores

RECIPE = """
task = "sweep"
base = "cnn"
num_trials = {num_trials}
[set]
"data.num_validation" = 1_000
"training.max_steps" = {steps}
"evaluation.every" = {every}
[space]
"training.learning_rate" = {{ loguniform = [1e-4, 1e-2] }}
"training.global_batch_size" = {{ choice = [64, 128] }}
"""
BARE = """
import json, sys
from pathlib import Path
import ray
from ray import tune

def train(config):
    from cifarscale.config.load import load_training_recipe
    from cifarscale.runs.options import RunOptions
    from runs import run_recipe
    from cifarscale.training.signals import StopRequest
    class Reporter:
        def started(self, step): pass
        def finish(self, result, error): pass
        def log(self, step, values):
            if "validation_top1" in values:
                tune.report({"step": step, "validation_top1": values["validation_top1"]})
    recipe = load_training_recipe(config["recipe"])
    run_recipe(recipe, Path(config["run_dir"]), RunOptions(Path(config["shards"]), "cpu"), Reporter(), StopRequest())

shards, out, recipes = sys.argv[1], Path(sys.argv[2]), json.loads(sys.argv[3])
ray.init(log_to_driver=False)
trials = [{"recipe": recipe, "run_dir": str(out / f"trial-{i}"), "shards": shards} for i, recipe in enumerate(recipes)]
tune.Tuner(
    tune.with_resources(tune.with_parameters(lambda config: train(config["trial"])), {"cpu": 1}),
    param_space={"trial": tune.grid_search(trials)},
    run_config=tune.RunConfig(storage_path=str(out / "ray"), verbose=0),
).fit()
ray.shutdown()
"""


def seconds_of(command: list[str]) -> float:
    """How long a command takes from its start to its end."""
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "", "RAY_USAGE_STATS_ENABLED": "0"}
    started = time.perf_counter()
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr[-2000:])
    return time.perf_counter() - started


@click.command()
@click.option("--num-trials", default=16, show_default=True)
@click.option("--steps", default=500, show_default=True, help="Of each trial.")
@click.option("--rounds", default=3, show_default=True)
def main(num_trials: int, steps: int, rounds: int) -> None:
    """Prints the trials an hour of both, with the spread over rounds, and their ratio."""
    with tempfile.TemporaryDirectory() as base:
        folder = Path(base)
        shards, recipe = folder / "shards", folder / "swept.toml"
        build_shards("synthetic", shards)
        recipe.write_text(RECIPE.format(num_trials=num_trials, steps=steps, every=steps // 4), encoding="utf-8")

        def ours(run_dir: Path) -> float:
            command = [sys.executable, "-m", "cifarscale", "sweep", str(recipe), "--data", str(shards)]
            return seconds_of([*command, "--run-dir", str(run_dir)])

        def bare(run_dir: Path, recipes: list[str]) -> float:
            run_dir.mkdir()
            return seconds_of([sys.executable, "-c", BARE, str(shards), str(run_dir), json.dumps(recipes)])

        rates: dict[str, list[float]] = {"bare Ray Tune": [], "cifarscale sweep": []}
        for i in range(rounds):
            rates["cifarscale sweep"].append(3600 * num_trials / ours(folder / f"ours-{i}"))
            recipes = sorted(map(str, (folder / f"ours-{i}").glob("trials/*/recipe.toml")))
            rates["bare Ray Tune"].append(3600 * num_trials / bare(folder / f"bare-{i}", recipes))
            assert len(list((folder / f"bare-{i}").glob("trial-*/result.json"))) == num_trials
            shutil.rmtree(folder / f"bare-{i}")
    print(
        f"{platform.machine()}, {available_cores()} cores, torch {torch.__version__}, ray {ray.__version__}, "
        f"{num_trials} trials of {steps:,} steps, {rounds} rounds"
    )
    for name, found in rates.items():
        ratio = statistics.mean(found) / statistics.mean(rates["bare Ray Tune"])
        spread = statistics.stdev(found) if len(found) > 1 else 0.0
        print(f"{name:18s} {statistics.mean(found):8.0f} ± {spread:4.0f} trials an hour  {ratio:5.2f}x")


if __name__ == "__main__":
    main()

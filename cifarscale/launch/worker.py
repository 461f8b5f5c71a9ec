"""What a rank runs: a call, in a process that a launcher has forked or in a task of SLURM's."""

import importlib
import os
import sys
import tomllib
from pathlib import Path
from typing import Any

from cifarscale.config.distance import DistanceRecipe
from cifarscale.config.load import parse_recipe
from cifarscale.config.recipe import TrainingRecipe
from cifarscale.inference import evaluate_run, measure_images
from cifarscale.launch.call import Call
from cifarscale.log import configure_logging
from cifarscale.prepare import RunOptions
from cifarscale.run import run_job


def train(recipe: str, run_dir: str, options: dict[str, Any]) -> None:
    """`recipe` is the resolved recipe as TOML."""
    parsed = parse_recipe(tomllib.loads(recipe), "recipe")
    assert isinstance(parsed, TrainingRecipe)
    run_job(parsed, Path(run_dir), RunOptions.from_plain(options))


def evaluate(run_dir: str, split: str, options: dict[str, Any], out: str) -> None:
    evaluate_run(Path(run_dir), split, RunOptions.from_plain(options), Path(out))


def fid(job: str, shards: str | None, device: str, out: str, save: str | None) -> None:
    """`job` is the job as TOML."""
    parsed = parse_recipe(tomllib.loads(job), "job")
    assert isinstance(parsed, DistanceRecipe)
    measure_images(parsed, Path(shards) if shards else None, device, Path(out), Path(save) if save else None)


def run_call(call: Call) -> None:
    """Runs a call as the rank that the environment names."""
    sys.argv = call.command
    configure_logging(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]), call.debug)
    module, _, name = call.function.partition(":")
    getattr(importlib.import_module(module), name)(**call.arguments)

"""A trial, in a process that Ray Tune has started. Importing this loads Ray."""

from typing import Any

from ray import tune

from cifarscale.sweeps.ray.rank import run_rank
from cifarscale.sweeps.ray.ranks import run_ranks


def run_trial(config: dict[str, Any]) -> None:
    """The same `run` as anywhere, in this process, or in the workers that the trial has of its own."""
    if config["workers"] > 1:
        tune.report(run_ranks(config, tune.report))
    else:
        tune.report(run_rank(config, tune.report))

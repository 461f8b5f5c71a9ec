"""A sweep in a job with one task a node: rank 0 runs it, on a Ray over all nodes that the other ranks take part in."""

import logging
import os
import tomllib
from pathlib import Path

import torch

from cifarscale.config.load import parse_recipe, recipe_toml
from cifarscale.config.sweep import SweepRecipe
from cifarscale.distributed.ranks import FILE_VARIABLE, ranks_from_environment
from cifarscale.launch.call import Call
from cifarscale.sweep.prepared import Nodes, prepare_sweep
from cifarscale.sweep.ray.cluster import ray_over_nodes, serve_node
from cifarscale.sweep.trials import Trial, trial_line
from cifarscale.training.signals import stop_on_signals

log = logging.getLogger(__name__)

PATIENCE_S = 300
"""How long a job waits for one before it that has lost its node, and may still write the sweep's folder."""


class _Logged:
    """Each change of a trial as a line of the log."""

    def __init__(self, metric: str) -> None:
        self._metric = metric

    def changed(self, trial: Trial) -> None:
        log.info("%s", trial_line(trial, self._metric))


def sweeping(sweep: SweepRecipe, run_dir: Path, shards: Path) -> Call:
    """What each rank of a sweep over nodes calls."""
    arguments = {"recipe": recipe_toml(sweep), "run_dir": str(run_dir), "shards": str(shards)}
    return Call("cifarscale.sweep.task:run_rank", arguments)


def run_rank(recipe: str, run_dir: str, shards: str) -> None:
    """One rank a node: rank 0 runs the sweep, and Ray runs its trials on all of them. `recipe` is the sweep as TOML."""
    parsed = parse_recipe(tomllib.loads(recipe), "recipe")
    assert isinstance(parsed, SweepRecipe)
    sweep_on_nodes(parsed, Path(run_dir), Path(shards))


def sweep_on_nodes(sweep: SweepRecipe, run_dir: Path, shards: Path) -> None:
    """Runs a sweep as the rank that the environment names, with the cores that it has by OMP_NUM_THREADS.

    Raises: Interrupted on all ranks if a signal came.
    """
    ranks, meeting = ranks_from_environment(), Path(os.environ[FILE_VARIABLE]).with_suffix("")
    num_cpus = int(os.environ["OMP_NUM_THREADS"])
    num_gpus = torch.cuda.device_count() if sweep.gpus_per_trial else 0
    with stop_on_signals() as stop:
        if not ranks.is_first:
            serve_node(ranks, meeting, num_cpus, num_gpus)
            return
        nodes = Nodes(num_cpus, num_gpus, lambda: ray_over_nodes(ranks, meeting, num_cpus, num_gpus))
        prepare_sweep(sweep, run_dir, str(shards)).run(nodes, True, _Logged(sweep.metric), stop, PATIENCE_S)

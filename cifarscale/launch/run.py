"""The two calls by which every run is made, wherever it is started: `prepare`, and on each rank `run`."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from cifarscale.config.recipe import Recipe
from cifarscale.launch.call import Call
from cifarscale.runs.options import RunOptions
from cifarscale.runs.run_folder import RunFolder
from cifarscale.tasks.base import PreparedRun, task_of

if TYPE_CHECKING:
    from cifarscale.tracking.sink import Sink
    from cifarscale.training.signals import StopRequest


def prepare(
    recipe: Recipe, run_dir: Path | None = None, data: str | None = None, options: RunOptions | None = None
) -> PreparedRun:
    """Resolves a recipe, and checks all that can be known before it runs.

    Args:
        run_dir: None for the recipe's own, `runs/NAME-HASH`.
        data: a data set or a folder of shards; None for the recipe's own.
        options: but for the shards, which are located here; None for the defaults.
    Raises: ConfigError, DataError or RunError for what is missing or does not fit.
    """
    return task_of(recipe).prepare(recipe, run_dir, data, options or RunOptions())


def run(
    run_dir: Path, options: RunOptions, sink: "Sink | None" = None, stop: "StopRequest | None" = None
) -> dict[str, Any]:
    """Runs the recipe.toml of a run folder as the rank that the environment names; see `Task.run`."""
    folder = RunFolder(run_dir)
    recipe = folder.load_recipe()
    return task_of(recipe).run(recipe, folder, options, sink, stop)


def call_of(prepared: PreparedRun) -> Call:
    """`run` as a call, to cross to another process or into a queue."""
    arguments = {"run_dir": str(prepared.run_dir), "options": prepared.options.as_plain()}
    return Call("cifarscale.launch.worker:run_prepared", arguments)

"""Sweeps in scripts and notebooks."""

import logging
from pathlib import Path

from cifarscale.api.recipes import folder_for, name_of, recipe_of
from cifarscale.api.runs import Sweep
from cifarscale.config.load import Changes, recipe_files, require_task
from cifarscale.config.recipe import Recipe
from cifarscale.errors import short_path
from cifarscale.launch.run import prepare
from cifarscale.runs.options import RunOptions

log = logging.getLogger(__name__)


def sweep(
    recipe: str | Path | Recipe,
    *,
    num_trials: int | None = None,
    set: Changes | None = None,
    data: str | Path | None = None,
    run_dir: str | Path | None = None,
    resume: bool = True,
) -> Sweep:
    """Searches for better values of a recipe's keys on this machine; returns at once if the sweep is complete.

    Ctrl-C has the trials save and raises Interrupted; the same call goes on. Trials that are done never run again.

    Args:
        recipe: that of a sweep, as in `train`; `cnn` is short for `sweep-cnn`.
        num_trials: shorthand for that key.
        set: dotted keys of the sweep that are changed, as in `train`; `set.KEY` is a key of its base.
        data: a data set or a folder of shards; None for the base's own.
        run_dir: None for the sweep's own, `runs/NAME-HASH`.
        resume: whether to go on with a sweep that was interrupted, or is to have more trials.
    Raises: CifarscaleError with the text that the command line prints.
    """
    named = f"sweep-{recipe}" if isinstance(recipe, str) and f"sweep-{recipe}" in recipe_files() else recipe
    loaded = recipe_of(named, set, num_trials=num_trials)
    require_task(loaded, "sweep", name_of(recipe))
    from cifarscale.sweeps.prepared import PreparedSweep
    from cifarscale.sweeps.progress import SweepProgress
    from cifarscale.sweeps.running import RunningSweep, this_machine
    from cifarscale.training.signals import stop_on_signals

    machine = this_machine()
    loaded.check_nodes(1, machine.num_cpus, machine.num_gpus, "this machine")
    prepared = prepare(loaded, folder_for(named, loaded, run_dir), str(data) if data else None, RunOptions())
    assert isinstance(prepared, PreparedSweep)
    log.info("sweep folder %s", short_path(prepared.run_dir))
    with SweepProgress(prepared.recipe.metric) as progress, stop_on_signals() as stop:
        RunningSweep(prepared).run(machine, resume, progress, stop)
    return Sweep(prepared.run_dir, prepared.recipe)

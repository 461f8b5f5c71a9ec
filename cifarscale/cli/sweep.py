"""`cifarscale sweep` and `sweep-status`."""

import sys
from pathlib import Path
from typing import Any

import click

from cifarscale.cli.options import tracked, wandb_option
from cifarscale.errors import short_path


@click.command(short_help="Search for better values of a recipe's keys.")
@click.argument("recipe")
@click.option("--num-trials", type=click.IntRange(min=1), help="Trials to start.  [default: the recipe's]")
@click.option("--max-concurrent", type=click.IntRange(min=0), help="Trials side by side; 0 for as many as fit.")
@click.option("--workers-per-trial", type=click.IntRange(min=1), help="Ranks per trial.")
@click.option("--cpus-per-trial", type=click.IntRange(min=1), help="CPU cores of a trial, or of each worker.")
@click.option(
    "--gpus-per-trial", type=click.FloatRange(min=0), help="GPUs of a trial, or of each worker; a fraction shares one."
)
@click.option("--resume", is_flag=True, help="Go on with a sweep that was interrupted, or give it more trials.")
@click.option("--data", help="A data set (cifar100, synthetic) or a folder of shards.  [default: the base's set]")
@click.option("--run-dir", type=click.Path(path_type=Path), help="The sweep's folder.  [default: runs/NAME-HASH]")
@wandb_option
@click.option(
    "--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Change a key of the sweep; set.KEY of its base."
)
def sweep(
    recipe: str,
    num_trials: int | None,
    max_concurrent: int | None,
    workers_per_trial: int | None,
    cpus_per_trial: int | None,
    gpus_per_trial: float | None,
    resume: bool,
    data: str | None,
    run_dir: Path | None,
    wandb: str | None,
    overrides: tuple[str, ...],
) -> None:
    """Run the sweep RECIPE on this machine: trials of its base with other values, the best of which is best.toml.

    A trial is a job like any other, in a run folder below the sweep's. Trials that are done never run again.
    Exit code 1 if every trial failed.
    """
    from cifarscale.api.sweeps import sweep
    from cifarscale.errors import EXIT_ERROR
    from cifarscale.sweeps.view import SweepView

    placed = {
        "num_trials": num_trials,
        "max_concurrent": max_concurrent,
        "workers_per_trial": workers_per_trial,
        "cpus_per_trial": cpus_per_trial,
        "gpus_per_trial": gpus_per_trial,
    }
    changes: list[str | tuple[str, Any]] = [*overrides]
    changes += [(key, value) for key, value in placed.items() if value is not None]
    changes += tracked(wandb, "set.")
    swept = sweep(recipe, set=changes, data=data, run_dir=run_dir, resume=resume)
    result = swept.result
    assert result is not None
    SweepView().print_result(result, swept.path)
    if result["best"] is None:
        sys.exit(EXIT_ERROR)


@click.command(short_help="Show how far a sweep's trials are.")
@click.argument("sweep", metavar="SWEEP|JOB")
def sweep_status(sweep: str) -> None:
    """Show how far the trials of a sweep are, also while it runs: by its folder, or by the id of its SLURM job."""
    from rich.console import Console

    from cifarscale.slurm.submitted import find_run
    from cifarscale.sweeps.trials import SweepFolder
    from cifarscale.sweeps.view import SweepView, trials_text

    folder = SweepFolder(find_run(sweep)[0])
    job = folder.load_sweep()
    folder.load()
    result = folder.result()
    if result is not None:
        SweepView().print_result(result, folder.path)
    elif folder.trials:
        Console(markup=False).print(trials_text(folder.trials, job.metric))
    else:
        click.echo(f"{short_path(folder.path)}: no trial has started yet")

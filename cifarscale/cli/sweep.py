"""`cifarscale sweep` and `sweep-status`."""

import sys
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

import click

from cifarscale.cli.options import tracked, wandb_option
from cifarscale.errors import short_path

if TYPE_CHECKING:
    from cifarscale.sweeps.trials import Trial


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
    from cifarscale.config.load import load_recipe, require_task
    from cifarscale.errors import EXIT_ERROR
    from cifarscale.launch.run import prepare
    from cifarscale.runs.options import RunOptions
    from cifarscale.runs.run_folder import folder_of
    from cifarscale.sweeps.prepared import PreparedSweep
    from cifarscale.sweeps.view import SweepView

    placed = {
        "num_trials": num_trials,
        "max_concurrent": max_concurrent,
        "workers_per_trial": workers_per_trial,
        "cpus_per_trial": cpus_per_trial,
        "gpus_per_trial": None if gpus_per_trial is None else float(gpus_per_trial),
    }
    flags = [f"{key}={value}" for key, value in placed.items() if value is not None]
    job = load_recipe(_sweep_of(recipe), (*overrides, *flags, *tracked(wandb, "set.")))
    require_task(job, "sweep", recipe)
    from cifarscale.sweeps.running import RunningSweep, this_machine
    from cifarscale.training.signals import stop_on_signals

    machine = this_machine()
    job.check_nodes(1, machine.num_cpus, machine.num_gpus, "this machine")
    prepared = prepare(job, run_dir or folder_of(recipe, job), data, RunOptions())
    assert isinstance(prepared, PreparedSweep)
    click.echo(f"sweep folder {short_path(prepared.run_dir)}", err=True)
    with _Display(prepared.recipe.metric) as display, stop_on_signals() as stop:
        result = RunningSweep(prepared).run(machine, resume, display, stop)
    SweepView().print_result(result, prepared.run_dir)
    if result["best"] is None:
        sys.exit(EXIT_ERROR)


def _sweep_of(recipe: str) -> str:
    """`cnn` is short for `sweep-cnn`, where there is a recipe of that name."""
    from cifarscale.config.load import recipe_files

    return f"sweep-{recipe}" if f"sweep-{recipe}" in recipe_files() else recipe


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
        Console().print(trials_text(folder.trials, job.metric))
    else:
        click.echo(f"{short_path(folder.path)}: no trial has started yet")


class _Display:
    """The trials as they run: a live table on a terminal, a line for each change elsewhere."""

    def __init__(self, metric: str) -> None:
        from rich.live import Live

        from cifarscale.log import console

        self._console, self._metric = console, metric
        self._trials: dict[int, Trial] = {}
        self._live = Live(console=console, auto_refresh=False, transient=True) if console.is_terminal else None

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def changed(self, trial: "Trial") -> None:
        """Shows a trial's new state."""
        from cifarscale.sweeps.trials import trial_line
        from cifarscale.sweeps.view import trials_text

        self._trials[trial.number] = trial
        if self._live is not None:
            rows = [self._trials[number] for number in sorted(self._trials)]
            self._live.update(trials_text(rows, self._metric, in_full=False), refresh=True)
            return
        self._console.print(trial_line(trial, self._metric), highlight=False, markup=False, soft_wrap=True)

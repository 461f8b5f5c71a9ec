"""`cifarscale sweep` and `sweep-status`."""

import sys
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import click

from cifarscale.cli.options import plain_table, short_path, tracked, wandb_option
from cifarscale.files import typed

if TYPE_CHECKING:
    from rich.table import Table

    from cifarscale.sweep.trials import SweepFolder, Trial


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
    from cifarscale.config.load import load_recipe
    from cifarscale.config.sweep import SweepRecipe
    from cifarscale.errors import EXIT_ERROR, ConfigError

    placed = {
        "num_trials": num_trials,
        "max_concurrent": max_concurrent,
        "workers_per_trial": workers_per_trial,
        "cpus_per_trial": cpus_per_trial,
        "gpus_per_trial": None if gpus_per_trial is None else float(gpus_per_trial),
    }
    flags = [f"{key}={value}" for key, value in placed.items() if value is not None]
    job = load_recipe(_sweep_of(recipe), (*overrides, *flags, *tracked(wandb, "set.")))
    if not isinstance(job, SweepRecipe):
        raise ConfigError(f"{recipe} is a job of task {job.task!r}, and this needs task = 'sweep', as in sweep-cnn")
    from cifarscale.config.sweep import check_resources
    from cifarscale.runs.run_folder import folder_of
    from cifarscale.sweep.prepared import prepare_sweep, this_machine
    from cifarscale.training.signals import stop_on_signals

    machine = this_machine()
    check_resources(job, machine.num_cpus, machine.num_gpus, 1, "this machine")
    prepared = prepare_sweep(job, run_dir or folder_of(recipe, job), data)
    click.echo(f"sweep folder {short_path(prepared.folder.path)}", err=True)
    with _Display(job.metric) as display, stop_on_signals() as stop:
        prepared.run(machine, resume, display, stop)
    result = prepared.folder.result()
    assert result is not None
    _show_result(prepared.folder, result)
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
    from cifarscale.sweep.trials import SweepFolder

    folder = SweepFolder(find_run(sweep)[0])
    job = folder.load_sweep()
    folder.load()
    result = folder.result()
    if result is not None:
        _show_result(folder, result)
    elif folder.trials:
        Console().print(_table(folder.trials, job.metric))
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
        from cifarscale.sweep.trials import trial_line

        self._trials[trial.number] = trial
        if self._live is not None:
            rows = [self._trials[number] for number in sorted(self._trials)]
            self._live.update(_table(rows, self._metric, in_full=False), refresh=True)
            return
        self._console.print(trial_line(trial, self._metric), highlight=False, markup=False, soft_wrap=True)


def _table(trials: "Sequence[Trial]", metric: str, in_full: bool = True) -> "Table":
    """A row a trial; of one line, where the changed keys are not to be seen in full."""
    from rich.markup import escape
    from rich.table import Column

    from cifarscale.sweep.trials import shown_changes

    columns = [
        Column("trial", justify="right"),
        Column("state", no_wrap=True),
        Column("step", justify="right"),
        Column(metric, justify="right"),
        Column("changed keys", overflow="fold" if in_full else "ellipsis", no_wrap=not in_full),
    ]
    table = plain_table(*columns)
    for trial in trials:
        value = "–" if trial.value is None else f"{trial.value:.4f}"
        changed = escape(shown_changes(trial))
        table.add_row(str(trial.number), trial.state, f"{trial.step:,}", value, changed)
    return table


def _show_result(folder: "SweepFolder", result: dict[str, Any]) -> None:
    from rich.console import Console

    from cifarscale.sweep.trials import FAILED, REPEATED, ranked

    console = Console()
    order = ranked(folder.trials, result["mode"])
    if order:
        table = _table(order, result["metric"])
        is_validation = result["metric"].startswith("validation")
        split = "on the validation split" if is_validation else "the distance to the images that the recipe names"
        table.title = f"{result['name']}: {len(folder.trials)} trials by {result['metric']}, the best first"
        table.caption = f"{result['metric']} is {split}; no trial was chosen by the test set"
        console.print(table)
    for trial in folder.trials:
        if trial.state in (FAILED, REPEATED):
            click.echo(f"trial {trial.number} {trial.state}: {trial.reason}")
    if result["ended"]:
        click.echo(f"the sweep ended early: {result['ended']}")
    if result["best"] is None:
        click.echo("No trial produced a result.")
        return
    for path in sorted(folder.plots.glob("*.png")):
        click.echo(f"plot    {short_path(path)}")
    click.echo(f"best    {short_path(folder.best)} (trial {result['best']['trial']})")
    if result["best"]["overrides"].get("later"):
        click.echo("        it changes keys in the middle of the run, as that trial and those before it did")
    click.echo(f"next    cifarscale train {typed(short_path(folder.best))}")

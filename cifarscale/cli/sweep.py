"""`cifarscale sweep` and `sweep-status`."""

import sys
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import click

from cifarscale.cli.options import short_path

if TYPE_CHECKING:
    from rich.table import Table

    from cifarscale.cluster.trials import SweepFolder, Trial


@click.command(short_help="Search for better values of a recipe's keys.")
@click.argument("recipe")
@click.option("--num-trials", type=click.IntRange(min=1), help="Trials to start.  [default: the recipe's]")
@click.option("--max-concurrent", type=click.IntRange(min=0), help="Trials side by side; 0 for as many as fit.")
@click.option("--cpus-per-trial", type=click.IntRange(min=1), help="CPU cores of a trial.")
@click.option("--gpus-per-trial", type=click.FloatRange(min=0), help="GPUs of a trial; a fraction shares one.")
@click.option("--resume", is_flag=True, help="Go on with a sweep that was interrupted, or give it more trials.")
@click.option("--data", help="A data set (cifar100, synthetic) or a folder of shards.  [default: the base's set]")
@click.option("--run-dir", type=click.Path(path_type=Path), help="The sweep's folder.  [default: runs/NAME-HASH]")
@click.option(
    "--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Change a key of the sweep; set.KEY of its base."
)
def sweep(
    recipe: str,
    num_trials: int | None,
    max_concurrent: int | None,
    cpus_per_trial: int | None,
    gpus_per_trial: float | None,
    resume: bool,
    data: str | None,
    run_dir: Path | None,
    overrides: tuple[str, ...],
) -> None:
    """Run the sweep RECIPE on this machine: trials of its base with other values, the best of which is best.toml.

    A trial is a job like any other, in a run folder below the sweep's. Trials that are done never run again.
    Exit code 1 if every trial failed.
    """
    from cifarscale.config.load import load_job
    from cifarscale.config.sweep import SweepJob
    from cifarscale.errors import EXIT_ERROR, ConfigError

    placed = {
        "num_trials": num_trials,
        "max_concurrent": max_concurrent,
        "cpus_per_trial": cpus_per_trial,
        "gpus_per_trial": None if gpus_per_trial is None else float(gpus_per_trial),
    }
    flags = [f"{key}={value}" for key, value in placed.items() if value is not None]
    job = load_job(recipe, (*overrides, *flags))
    if not isinstance(job, SweepJob):
        raise ConfigError(f"{recipe} is a job of task {job.task!r}, and this needs task = 'sweep', as in sweep-cnn")
    from cifarscale.cluster.sweep import run_sweep
    from cifarscale.cluster.trials import default_sweep_dir

    run_dir = run_dir or default_sweep_dir(job)
    click.echo(f"sweep folder {run_dir}", err=True)
    with _Display(run_dir, job.metric) as display:
        folder, result = run_sweep(job, run_dir, data, resume, display)
    _show_result(folder, result)
    if result["best"] is None:
        sys.exit(EXIT_ERROR)


@click.command(short_help="Show how far a sweep's trials are.")
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
def sweep_status(folder: Path) -> None:
    """Show how far the trials of the sweep in FOLDER are, also while it runs."""
    from rich.console import Console

    from cifarscale.cluster.trials import SweepFolder

    found = SweepFolder(folder)
    found.load_sweep()
    found.load()
    result = found.result()
    if result is not None and not result["ended"]:
        _show_result(found, result)
        return
    Console().print(_table(found.trials, found.load_sweep().metric))


class _Display:
    """The trials as they run: a live table on a terminal, a line for each change elsewhere."""

    def __init__(self, run_dir: Path, metric: str) -> None:
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
        from cifarscale.cluster.trials import shown_overrides

        self._trials[trial.number] = trial
        if self._live is not None:
            rows = [self._trials[number] for number in sorted(self._trials)]
            self._live.update(_table(rows, self._metric), refresh=True)
            return
        value = "" if trial.value is None else f"  {self._metric} {trial.value:.4f}"
        more = trial.reason or (shown_overrides(trial.overrides) if not trial.step else "")
        line = f"trial {trial.number}  {trial.state}  step {trial.step:,}{value}  {more}"
        self._console.print(line.rstrip(), highlight=False, markup=False, soft_wrap=True)


def _table(trials: "Sequence[Trial]", metric: str) -> "Table":
    from rich.box import SIMPLE_HEAD
    from rich.markup import escape
    from rich.table import Column, Table

    from cifarscale.cluster.trials import shown_overrides

    columns = [
        Column("trial", justify="right"),
        Column("state", no_wrap=True),
        Column("step", justify="right"),
        Column(metric, justify="right"),
        Column("changed keys", overflow="fold"),
    ]
    table = Table(*columns, box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for trial in trials:
        value = "–" if trial.value is None else f"{trial.value:.4f}"
        changed = escape(shown_overrides(trial.overrides))
        table.add_row(str(trial.number), trial.state, f"{trial.step:,}", value, changed)
    return table


def _show_result(folder: "SweepFolder", result: dict[str, Any]) -> None:
    from rich.console import Console

    from cifarscale.cluster.trials import FAILED, REPEATED, ranked

    console = Console()
    order = ranked(folder.trials, result["mode"])
    if order:
        table = _table(order, result["metric"])
        split = "the validation split" if result["metric"].startswith("validation") else "training's own measurement"
        table.title = f"{result['name']}: {len(folder.trials)} trials by {result['metric']}, the best first"
        table.caption = f"{result['metric']} is on {split}; no trial was chosen by the test set"
        console.print(table)
    for trial in folder.trials:
        if trial.state in (FAILED, REPEATED):
            click.echo(f"trial {trial.number} {trial.state}: {trial.reason}")
    if result["ended"]:
        click.echo(f"the sweep ended early: {result['ended']}")
    if result["best"] is None:
        click.echo("no trial came to a figure")
        return
    click.echo(f"best    {short_path(folder.best)} (trial {result['best']['trial']})")
    click.echo(f"next    cifarscale train {short_path(folder.best)}")

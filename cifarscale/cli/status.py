"""`cifarscale status`, `logs` and `cancel`: what became of what one has submitted."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cifarscale.errors import short_path
from cifarscale.log import plain_table

if TYPE_CHECKING:
    from cifarscale.slurm.status import RunStatus
    from cifarscale.slurm.submitted import Submitted

job_or_run_argument = click.argument("job_or_run", metavar="JOB|RUN")


@click.command(short_help="Show the progress of submitted jobs.")
@click.argument("job_or_run", metavar="[JOB|RUN]", required=False)
@click.option("--goodput", is_flag=True, help="Show where the time of a run went, and what to request instead.")
def status(job_or_run: str | None, goodput: bool) -> None:
    """Show the progress of a job, or of all submitted runs below runs/."""
    from cifarscale.errors import ConfigError
    from cifarscale.runs.run_folder import run_folders
    from cifarscale.slurm.status import run_status, run_statuses
    from cifarscale.slurm.submitted import find_run, submissions

    if goodput and job_or_run is None:
        raise ConfigError("--goodput is of one run. Run: cifarscale status RUN --goodput")
    if job_or_run is None:
        submitted = [run for run in run_folders() if submissions(run)]
        if submitted:
            _show_jobs(run_statuses(submitted))
        else:
            click.echo("no run below runs/ was submitted. Run: cifarscale submit RECIPE")
        return
    run_dir, _ = find_run(job_or_run)
    _show_jobs([run_status(run_dir)])
    if goodput:
        _show_goodput(run_dir)


@click.command(short_help="Print the log of a rank of a job.")
@job_or_run_argument
@click.option(
    "--rank",
    type=click.IntRange(min=0),
    help="Which rank.  [default: 0, after the error of the rank that failed first]",
)
@click.option("-f", "--follow", is_flag=True, help="Keep printing until the job ends.")
def logs(job_or_run: str, rank: int | None, follow: bool) -> None:
    """Print the log of a rank of a job. For a failed job, first prints the error of the rank that failed first."""
    from cifarscale.slurm.status import newest_failures, rank_log, require_rank_log
    from cifarscale.slurm.submitted import find_run

    run_dir, submitted = find_run(job_or_run)
    goes_on = _watching(run_dir, submitted)
    if rank is None and submitted and not goes_on() and (causes := newest_failures(submitted)):
        click.echo(f"rank {causes[0].rank} on {causes[0].host} ended first:")
        click.echo(f"{causes[0].message if causes[0].expected else causes[0].traceback.rstrip()}\n")
    while rank_log(run_dir, rank or 0) is None and follow and goes_on():
        time.sleep(1)
    for text in _growing(require_rank_log(run_dir, rank or 0), lambda: follow and goes_on()):
        click.echo(text, nl=False)


@click.command()
@job_or_run_argument
def cancel(job_or_run: str) -> None:
    """Cancel a job. Its run saves its state first; submit it again to resume."""
    from cifarscale.api.jobs import UNKNOWN, job

    cancelled = job(job_or_run)
    if cancelled.cancel():
        name = short_path(cancelled.path)
        click.echo(f"job {cancelled.id} is being cancelled; {name} goes on when it is submitted again")
    else:
        state = cancelled.state()
        click.echo(f"job {cancelled.id} is {'unknown to SLURM' if state == UNKNOWN else state.lower()} already")


def _watching(run_dir: Path, submitted: "Submitted | None") -> Callable[[], bool]:
    """Tells at each call whether the run's job, or the process that writes the run, goes on."""
    from cifarscale.slurm import client as slurm
    from cifarscale.slurm.status import run_status

    if submitted is None or not slurm.available():
        return lambda: run_status(run_dir).is_active
    watch = slurm.Watch(submitted.key)

    def goes_on() -> bool:
        watch.look()
        return watch.is_active

    return goes_on


def _growing(path: Path, goes_on: Callable[[], bool]) -> Iterator[str]:
    """What is in a file, and what is added to it while `goes_on`."""
    with path.open(encoding="utf-8", errors="replace") as file:
        while True:
            going = goes_on()
            while text := file.read(65_536):
                yield text
            if not going:
                return
            time.sleep(1)


def _show_jobs(statuses: "list[RunStatus]") -> None:
    from rich.console import Console
    from rich.table import Column

    columns = [Column("run", overflow="fold"), *(Column(name, no_wrap=True) for name in ("job", "SLURM", "folder"))]
    numbers = [Column(name, justify="right", no_wrap=True) for name in ("step", "loss", "images/s", "starts")]
    table = plain_table(*columns, *numbers)
    for each in statuses:
        table.add_row(
            each.run_dir.name,
            each.job_id or "–",
            each.job_state or "–",
            each.state,
            steps(each),
            "–" if each.loss is None else f"{each.loss:.3f}",
            "–" if each.images_per_second is None else f"{each.images_per_second:,.0f}",
            "–" if each.restarts is None else str(each.restarts + 1),
        )
    console = Console(markup=False)
    console.print(table)
    for each in statuses:
        if each.reason:
            console.print(f"{each.run_dir.name}: {each.reason}", markup=False, highlight=False, soft_wrap=True)


def _show_goodput(run_dir: Path) -> None:
    from rich.console import Console
    from rich.table import Table

    from cifarscale.explain.goodput import goodput_rows

    table = Table("goodput", "")
    for name, value in goodput_rows(run_dir):
        table.add_row(name, value)
    Console(markup=False).print(table)


def steps(status: "RunStatus") -> str:
    """How far a run has come."""
    if status.max_steps is None:
        return "–"
    return f"{status.step or 0:,}/{status.max_steps:,}"

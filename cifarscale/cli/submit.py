"""`cifarscale submit`."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cifarscale.cli.options import no_graph_option, scale_option, set_option, tracked, wandb_option
from cifarscale.errors import short_path, typed

if TYPE_CHECKING:
    from cifarscale.api.jobs import Job, JobPlan
    from cifarscale.api.runs import Run


@click.command(short_help="Queue a recipe on a SLURM cluster.")
@click.argument("recipe")
@click.option("--nodes", type=click.IntRange(min=1), default=1, show_default=True, help="Nodes of the job.")
@click.option(
    "--gpus-per-node", type=click.IntRange(min=0), help="GPUs per node, with one rank each.  [default: the profile's]"
)
@click.option("--profile", help="A cluster profile.  [default: $CIFARSCALE_PROFILE, or gpu]")
@click.option("--time", help="Time limit, as SLURM writes it: 04:00:00.  [default: the profile's]")
@set_option
@scale_option
@click.option("--array", metavar="KEY=V1,V2,…", help="One job for each value of a key, as a job array.")
@click.option("--at-once", type=click.IntRange(min=1), help="Most jobs of the array that run at the same time.")
@click.option("--data", help="A data set (cifar100, synthetic) or a folder of shards.  [default: the recipe's set]")
@click.option("--run-dir", type=click.Path(path_type=Path), help="The run's folder.  [default: runs/NAME-HASH]")
@click.option("--num-workers", type=click.IntRange(min=0), default=0, help="Reading processes per rank.")
@no_graph_option
@wandb_option
@click.option("--dry-run", is_flag=True, help="Show the plan and the sbatch script without queueing.")
@click.option("--wait", is_flag=True, help="Wait until the job has ended; exit code 0 if its run is complete.")
def submit(
    recipe: str,
    nodes: int,
    gpus_per_node: int | None,
    profile: str | None,
    time: str | None,
    overrides: tuple[str, ...],
    scale: int,
    array: str | None,
    at_once: int | None,
    data: str | None,
    run_dir: Path | None,
    num_workers: int,
    no_graph: bool,
    wandb: str | None,
    dry_run: bool,
    wait: bool,
) -> None:
    """Queue RECIPE on a SLURM cluster: any job of `cifarscale jobs list`, or a .toml file.

    Where it has nothing for some of the ranks to do, nothing is queued, and commands are shown to choose from.
    The same command resumes a run that was interrupted, is refused while its job is queued or runs, and shows the
    result of a run that is complete.
    """
    from cifarscale.api.jobs import plan
    from cifarscale.errors import ClusterError

    planned = plan(
        recipe,
        nodes=nodes,
        gpus_per_node=gpus_per_node,
        profile=profile,
        time=time,
        set=(*overrides, *tracked(wandb)),
        scale=scale,
        array=array,
        at_once=at_once,
        data=data,
        run_dir=run_dir,
        num_workers=num_workers,
        graph=not no_graph,
        on_cluster=not dry_run,
    )
    if dry_run:
        _show_plan(planned)
        return
    for run in planned.complete():
        _show_complete(run)
    queued: list[Job] = []

    def show(job: "Job") -> None:
        queued.append(job)
        _show_submitted(job)

    planned.submit(show)
    if wait and queued and queued[0].id is not None:
        try:
            sys.exit(_wait(queued))
        except KeyboardInterrupt:
            raise ClusterError("no longer waited for; what is queued goes on. Run: cifarscale status") from None


def _show_plan(planned: "JobPlan") -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("plan", planned.runs[0].recipe.name, show_lines=False)
    for name, value in planned.rows().items():
        table.add_row(name, value)
    Console(markup=False).print(table)
    click.echo(planned.script, nl=False)


def _show_complete(run: "Run") -> None:
    from cifarscale.tasks.base import task_of

    folder, result = short_path(run.path), run.result
    assert result is not None
    click.echo(f"{folder} is complete: {task_of(run.recipe).view.outcome(result)}")
    click.echo(f"result     {folder}/result.json")


def _show_submitted(job: "Job") -> None:
    folder = short_path(job.path)
    if job.id is None:
        click.echo(f"result {folder}/result.json")
        return
    click.echo(f"job        {job.id}")
    click.echo(f"run folder {folder}")
    click.echo(f"next       cifarscale status {typed(folder)}")
    click.echo(f"           cifarscale logs {typed(folder)} -f")


def _wait(jobs: "list[Job]") -> int:
    """Shows each change of state until all jobs have ended. Returns: the exit code."""
    from cifarscale.api.jobs import changes, completed
    from cifarscale.errors import RunError

    for job, text in changes(jobs):
        click.echo(f"job {job.id}: {text}", err=True)
    code = 0
    for job in jobs:
        try:
            click.echo(f"result     {short_path(completed(job).path)}/result.json")
        except RunError as error:
            click.echo(f"error: {error}", err=True)
            code = error.exit_code
    return code

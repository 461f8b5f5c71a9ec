"""`cifarscale submit`."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cifarscale.cli.options import tracked, wandb_option
from cifarscale.errors import short_path, typed

if TYPE_CHECKING:
    from cifarscale.slurm.plan import Plan
    from cifarscale.slurm.profile import Profile
    from cifarscale.slurm.submitted import Submitted
    from cifarscale.tasks.base import PreparedRun


@click.command(short_help="Queue a recipe on a SLURM cluster.")
@click.argument("recipe")
@click.option("--nodes", type=click.IntRange(min=1), default=1, show_default=True, help="Nodes of the job.")
@click.option(
    "--gpus-per-node", type=click.IntRange(min=0), help="GPUs per node, with one rank each.  [default: the profile's]"
)
@click.option("--profile", help="A cluster profile.  [default: $CIFARSCALE_PROFILE, or gpu]")
@click.option("--time", help="Time limit, as SLURM writes it: 04:00:00.  [default: the profile's]")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Change a key of the recipe; repeatable.")
@click.option("--array", metavar="KEY=V1,V2,…", help="One job for each value of a key, as a job array.")
@click.option("--at-once", type=click.IntRange(min=1), help="Most jobs of the array that run at the same time.")
@click.option("--data", help="A data set (cifar100, synthetic) or a folder of shards.  [default: the recipe's set]")
@click.option("--run-dir", type=click.Path(path_type=Path), help="The run's folder.  [default: runs/NAME-HASH]")
@click.option("--num-workers", type=click.IntRange(min=0), default=0, help="Reading processes per rank.")
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
    array: str | None,
    at_once: int | None,
    data: str | None,
    run_dir: Path | None,
    num_workers: int,
    wandb: str | None,
    dry_run: bool,
    wait: bool,
) -> None:
    """Queue RECIPE on a SLURM cluster: any job of `cifarscale jobs list`, or a .toml file.

    The same command resumes a run that was interrupted, is refused while its job is queued or runs, and shows the
    result of a run that is complete.
    """
    from cifarscale.config.load import load_recipe
    from cifarscale.errors import ClusterError, ConfigError
    from cifarscale.launch.local import run_here
    from cifarscale.launch.run import prepare
    from cifarscale.runs.options import RunOptions
    from cifarscale.runs.run_folder import folder_of
    from cifarscale.slurm.profile import load_profile, with_options
    from cifarscale.slurm.submission import PATIENCE_S, sbatch_script, submit

    chosen = with_options(load_profile(profile), gpus_per_node=gpus_per_node, time=time)
    if array and run_dir:
        raise ConfigError("--run-dir has no place for the several runs of --array; leave it out")
    if at_once and not array:
        raise ConfigError(f"--at-once {at_once} has no effect without --array")
    options = RunOptions(None, "cuda" if chosen.gpus_per_node else "cpu", num_workers, PATIENCE_S)
    variants = _variants(array) if array else [()]
    overrides += tracked(wandb)
    recipes = [load_recipe(recipe, (*overrides, *more)) for more in variants]
    runs = [prepare(each, run_dir or folder_of(recipe, each), data, options) for each in recipes]
    plan, *_ = _plans(runs, chosen, nodes, dry_run)
    if dry_run:
        _show_plan(runs, chosen, plan)
        if chosen.launcher == "slurm":
            click.echo(sbatch_script(runs[0], chosen, plan), nl=False)
        return
    waiting = [run for run in runs if not _is_complete(run)]
    if not waiting:
        return
    if chosen.launcher == "local":
        for run in waiting:
            click.echo(f"run folder {short_path(run.run_dir)}", err=True)
            run_here(run, plan.world_size)
            click.echo(f"result {short_path(run.run_dir / 'result.json')}")
        return
    submitted = submit(waiting, chosen, plan, at_once or 0)
    for run, job in zip(waiting, submitted, strict=True):
        _show_submitted(run, job)
    if wait:
        try:
            sys.exit(_wait(waiting, submitted))
        except KeyboardInterrupt:
            raise ClusterError("no longer waited for; what is queued goes on. Run: cifarscale status") from None


def _is_complete(run: "PreparedRun") -> bool:
    """Whether the run has its result, which is then shown. Raises: RunError if it is that of another recipe."""
    from cifarscale.tasks.base import task_of

    result = run.result()
    if result is None:
        return False
    click.echo(f"{short_path(run.run_dir)} is complete: {task_of(run.recipe).view.outcome(result)}")
    click.echo(f"result     {short_path(run.run_dir / 'result.json')}")
    return True


def _variants(array: str) -> list[tuple[str, ...]]:
    """`seed=0,1,2` as one override for each value."""
    from cifarscale.errors import ConfigError

    key, separator, values = array.partition("=")
    if not separator or not values.strip(","):
        raise ConfigError(f"--array {array!r} is not of the form KEY=V1,V2,…, such as seed=0,1,2")
    return [(f"{key}={value}",) for value in dict.fromkeys(values.split(","))]


def _plans(runs: "list[PreparedRun]", profile: "Profile", nodes: int, dry_run: bool) -> "list[Plan]":
    """The plan of each, checked against the cluster; a dry run does without one."""
    from cifarscale.runs.run_folder import run_folders
    from cifarscale.slurm import client as slurm
    from cifarscale.slurm.plan import known_pace, make_plan

    partition = None
    if profile.launcher == "slurm" and (slurm.available() or not dry_run):
        partition = slurm.known_partition(profile.partition, slurm.partitions(), f"profile {profile.name}")
    others = run_folders(runs[0].run_dir.parent)
    return [
        make_plan(
            run.recipe, profile, nodes, partition, known_pace(run, others), run.num_shards, run.options.num_workers
        )
        for run in runs
    ]


def _show_plan(runs: "list[PreparedRun]", profile: "Profile", plan: "Plan") -> None:
    from rich.console import Console
    from rich.table import Table

    recipe = runs[0].recipe
    table = Table("plan", recipe.name, show_lines=False)
    on, cores = f"{plan.gpus_per_node} GPUs" if plan.gpus_per_node else "CPUs", f"{plan.cpus_per_task} cores"
    whole = recipe.one_rank_a_node
    rows: dict[str, object] = {
        "profile": f"{profile.name} ({profile.launcher})",
        "nodes": plan.nodes,
        "ranks": None if whole else f"{plan.world_size}: {plan.tasks_per_node} a node, on {on}, {cores} each",
        "a node": f"{cores}, {plan.gpus_per_node} GPUs" if whole else None,
        **recipe.plan_rows(plan.nodes, plan.cpus_per_task, plan.gpus_per_node),
        "batch a rank": plan.batch_size_per_rank,
        "microbatches a rank": plan.microbatches_per_rank,
        "shards a reader": plan.shards_per_reader,
        "time limit": f"{profile.time}, warned {profile.warning_seconds} s before",
        "jobs": len(runs) if len(runs) > 1 else None,
        "run folder": "\n".join(_named(run.run_dir) for run in runs),
    }
    if plan.checkpoint_seconds is not None and plan.hours is not None:
        rows |= {
            "a checkpoint every": f"{plan.checkpoint_seconds:,.0f} s",
            "checkpoints in the time": plan.checkpoints,
            "whole run": f"about {plan.hours:.1f} h, {plan.attempts} starts",
        }
    elif plan.batch_size_per_rank is not None:
        rows["checkpoints in the time"] = "not known before a first run has shown its pace"
    for name, value in rows.items():
        if value is not None:
            table.add_row(name, str(value))
    Console().print(table)


def _named(run_dir: Path) -> str:
    from cifarscale.runs.run_folder import RunFolder

    return short_path(run_dir) + (" (complete)" if RunFolder(run_dir).result() else "")


def _show_submitted(run: "PreparedRun", job: "Submitted") -> None:
    click.echo(f"job        {job.job_id}")
    click.echo(f"run folder {short_path(run.run_dir)}")
    click.echo(f"next       cifarscale status {typed(short_path(run.run_dir))}")
    click.echo(f"           cifarscale logs {typed(short_path(run.run_dir))} -f")


def _wait(runs: "list[PreparedRun]", submitted: "list[Submitted]") -> int:
    """Shows each change of state until all jobs have ended. Returns: the exit code."""
    import time

    from cifarscale.runs.run_folder import RunFolder
    from cifarscale.slurm import client as slurm

    shown: dict[str, str] = {}
    watches = [slurm.Watch(job.key, longest_s=10) for job in submitted]
    while watches:
        for watch in list(watches):
            if not watch.look():
                continue
            state = watch.state
            text = "unknown to SLURM" if state is None else f"{state.state} {state.reason}".strip()
            if shown.get(watch.job.job_id) != text:
                shown[watch.job.job_id] = text
                click.echo(f"job {watch.job}: {text}", err=True)
            if not watch.is_active:
                watches.remove(watch)
        if watches:
            time.sleep(1)
    failed = [run for run in runs if RunFolder(run.run_dir).result() is None]
    for run in runs:
        name = short_path(run.run_dir)
        if run in failed:
            click.echo(f"error: {name} is not complete. Run: cifarscale why {typed(name)}", err=True)
        else:
            click.echo(f"result     {name}/result.json")
    return 1 if failed else 0

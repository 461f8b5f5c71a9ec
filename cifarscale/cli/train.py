"""`cifarscale train`."""

from pathlib import Path

import click

from cifarscale.cli.options import (
    device_option,
    no_graph_option,
    nproc_option,
    scale_option,
    set_option,
    tracked,
    wandb_option,
)
from cifarscale.errors import short_path


@click.command(short_help="Train a recipe on this machine.")
@click.argument("recipe")
@click.option("--data", help="A data set (cifar100, synthetic) or a folder of shards.  [default: the recipe's set]")
@nproc_option
@device_option
@set_option
@scale_option
@click.option("--run-dir", type=click.Path(path_type=Path), help="The run's folder.  [default: runs/NAME-HASH]")
@click.option(
    "--num-workers", type=click.IntRange(min=0), default=0, help="Reading processes per rank (data.reader = streaming)."
)
@click.option("--digests", is_flag=True, help="Keep a digest of each tensor after each step, to compare runs by.")
@no_graph_option
@wandb_option
def train(
    recipe: str,
    data: str | None,
    nproc: int,
    device: str,
    overrides: tuple[str, ...],
    scale: int,
    run_dir: Path | None,
    num_workers: int,
    digests: bool,
    no_graph: bool,
    wandb: str | None,
) -> None:
    """Train RECIPE (a name from `cifarscale jobs list`, or a .toml file).

    The same command resumes a run that was interrupted, and shows the result of one that is complete.
    Ctrl-C saves and stops (exit code 75); a second Ctrl-C leaves at once.
    """
    from cifarscale.api.training import train
    from cifarscale.tasks.base import task_of

    run = train(
        recipe,
        set=(*overrides, *tracked(wandb)),
        scale=scale,
        data=data,
        nproc=nproc,
        device=device,
        run_dir=run_dir,
        num_workers=num_workers,
        digests=digests,
        graph=not no_graph,
    )
    folder, result = short_path(run.path), run.result
    assert result is not None
    if run.was_complete:
        click.echo(f"{folder} is complete; its result:")
    task_of(run.recipe).view.print_result(result, Path(folder))

"""`cifarscale train`."""

from pathlib import Path

import click

from cifarscale.cli.options import device_option, nproc_option, tracked, wandb_option
from cifarscale.errors import short_path


@click.command(short_help="Train a recipe on this machine.")
@click.argument("recipe")
@click.option("--data", help="A data set (cifar100, synthetic) or a folder of shards.  [default: the recipe's set]")
@nproc_option
@device_option
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Change a key of the recipe; repeatable.")
@click.option("--run-dir", type=click.Path(path_type=Path), help="The run's folder.  [default: runs/NAME-HASH]")
@click.option(
    "--num-workers", type=click.IntRange(min=0), default=0, help="Reading processes per rank (data.reader = streaming)."
)
@wandb_option
def train(
    recipe: str,
    data: str | None,
    nproc: int,
    device: str,
    overrides: tuple[str, ...],
    run_dir: Path | None,
    num_workers: int,
    wandb: str | None,
) -> None:
    """Train RECIPE (a name from `cifarscale jobs list`, or a .toml file).

    The same command resumes a run that was interrupted, and shows the result of one that is complete.
    Ctrl-C saves and stops (exit code 75); a second Ctrl-C leaves at once.
    """
    from cifarscale.config.load import load_training_recipe
    from cifarscale.config.ranks import batch_size_per_rank
    from cifarscale.launch.local import run_here
    from cifarscale.launch.run import prepare
    from cifarscale.runs.options import RunOptions
    from cifarscale.runs.run_folder import folder_of
    from cifarscale.tasks.base import task_of

    loaded = load_training_recipe(recipe, (*overrides, *tracked(wandb)))
    batch_size_per_rank(loaded, nproc)
    options = RunOptions(device=device, num_workers=num_workers)
    prepared = prepare(loaded, run_dir or folder_of(recipe, loaded), data, options)
    folder, result = short_path(prepared.run_dir), prepared.result()
    if result is None:
        click.echo(f"run folder {folder}", err=True)
        result = run_here(prepared, nproc)
    else:
        click.echo(f"{folder} is complete; its result:")
    task_of(loaded).view.print_result(result, Path(folder))

"""`cifarscale train`."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cifarscale.cli.options import device_option, nproc_option, tracked, wandb_option
from cifarscale.files import typed
from cifarscale.training.signals import leaving_on_signals

if TYPE_CHECKING:
    from cifarscale.config.recipe import TrainingRecipe
    from cifarscale.prepare import RunOptions


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
    from cifarscale.data.build import locate_shards
    from cifarscale.prepare import RunOptions, batch_size_per_rank, check_num_workers, default_run_dir, resolve
    from cifarscale.runs.run_folder import RunFolder, folder_of

    loaded = load_training_recipe(recipe, (*overrides, *tracked(wandb)))
    batch_size_per_rank(loaded, nproc)
    check_num_workers(loaded, num_workers)
    shards = locate_shards(data or loaded.data.dataset)
    resolved = resolve(loaded, shards)
    run_dir = run_dir or folder_of(recipe, loaded) or default_run_dir(resolved)
    complete = RunFolder(run_dir).result() is not None
    if not complete:
        click.echo(f"run folder {run_dir}", err=True)
    _train(resolved, run_dir, RunOptions(shards, device, num_workers), nproc)
    result = RunFolder(run_dir).result()
    assert result is not None
    if complete:
        click.echo(f"{run_dir} is complete; its result:")
    _show(result, run_dir)


def _train(recipe: "TrainingRecipe", run_dir: Path, options: "RunOptions", nproc: int) -> None:
    """In this process, or by ranks that are forked from one that imports torch; this one then needs no torch."""
    if nproc == 1:
        with leaving_on_signals():
            from cifarscale.run import run_job

            run_job(recipe, run_dir, options)
    else:
        from cifarscale.launch.call import training
        from cifarscale.launch.local import run_locally

        run_locally(training(recipe, run_dir, options), nproc, run_dir / "logs")


def _show(result: dict[str, Any], run_dir: Path) -> None:
    from rich.console import Console
    from rich.table import Table

    title = f"{result['name']}: {result['parameters']:,} parameters, {result['steps']:,} steps"
    rate = f"{result['images_per_second']:,.0f} images/s on {result['world_size']} × {result['device']}"
    if result["task"] == "gan":
        click.echo(f"{title}, {rate}")
        if "distance" in result:
            click.echo(f"{result['distance']['metric']} {result['distance']['distance']:.2f}")
        click.echo(f"samples {run_dir / result['samples']}")
        click.echo(f"result  {run_dir / 'result.json'}")
        click.echo(f"next    cifarscale generate {typed(run_dir)} --out samples.png")
        return
    table = Table(title=title, caption=rate)
    for column in ("split", "top-1", "top-5", "loss"):
        table.add_column(column, justify="left" if column == "split" else "right")
    for split in ("train", "validation", "test"):
        if split in result:
            figures = result[split]
            table.add_row(split, f"{figures['top1']:.2%}", f"{figures['top5']:.2%}", f"{figures['loss']:.4f}")
    Console().print(table)
    click.echo(f"result  {run_dir / 'result.json'}")
    click.echo(f"next    cifarscale evaluate {typed(run_dir)}")

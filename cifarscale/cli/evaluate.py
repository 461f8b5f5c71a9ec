"""`cifarscale evaluate` and `cifarscale predict`."""

from pathlib import Path

import click

from cifarscale.cli.options import device_option, nproc_option, run_argument


@click.command(short_help="Evaluate the classifier of a run on a split.")
@run_argument
@click.option("--split", type=click.Choice(["test", "validation", "train"]), default="test", show_default=True)
@click.option("--data", help="A data set or a folder of shards.  [default: the run's set]")
@nproc_option
@device_option
@click.option("--classes", is_flag=True, help="Show every class, not only the superclasses.")
@click.option("--flip", is_flag=True, help="Also by the mean logits of each image and its mirror image.")
def evaluate(run: Path, split: str, data: str | None, nproc: int, device: str, classes: bool, flip: bool) -> None:
    """Evaluate the classifier of RUN, a run folder, on a split. The result is exact for any number of processes."""
    from cifarscale.api.measurements import evaluation
    from cifarscale.tasks.base import task_of

    measurement = evaluation(run, split, flip)
    result = measurement.run(data, nproc, device)
    task_of(measurement.recipe).view.print_result(result, Path(), in_full=classes)
    click.echo(f"all metrics  {measurement.out}")


@click.command(short_help="Classify images with the classifier of a run.")
@run_argument
@click.argument("images", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@device_option
def predict(run: Path, images: tuple[Path, ...], device: str) -> None:
    """Classify IMAGES with the classifier of RUN: prints the five most probable classes of each."""
    from rich.console import Console
    from rich.table import Table

    from cifarscale.api.runs import load

    guessed = load(run).predict(images, device)
    console = Console(markup=False)
    for path, guesses in zip(images, guessed, strict=True):
        console.print(str(path), markup=False, highlight=False, soft_wrap=True)
        table = Table("class", "probability")
        for name, probability in guesses:
            table.add_row(name, f"{probability:7.2%}")
        console.print(table)

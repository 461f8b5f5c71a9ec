"""`cifarscale evaluate` and `cifarscale predict`."""

import json
from pathlib import Path
from typing import Any

import click

from cifarscale.cli.options import device_option, nproc_option, run_argument


@click.command(short_help="Evaluate the classifier of a run on a split.")
@run_argument
@click.option("--split", type=click.Choice(["test", "validation", "train"]), default="test", show_default=True)
@click.option("--data", help="A data set or a folder of shards.  [default: the run's set]")
@nproc_option
@device_option
@click.option("--classes", is_flag=True, help="Show every class, not only the superclasses.")
def evaluate(run: Path, split: str, data: str | None, nproc: int, device: str, classes: bool) -> None:
    """Evaluate the classifier of RUN, a run folder, on a split. The result is exact for any number of processes."""
    from cifarscale.data.build import locate_shards
    from cifarscale.prepare import RunOptions
    from cifarscale.runs.run_folder import RunFolder

    recipe = RunFolder(run).load_training_recipe()
    options = RunOptions(locate_shards(data or recipe.data.dataset), device)
    path = run / f"evaluation-{split}.json"
    if nproc == 1:
        from cifarscale.inference import evaluate_run

        evaluate_run(run, split, options, path)
    else:
        from cifarscale.launch.call import evaluation
        from cifarscale.launch.local import run_locally

        run_locally(evaluation(run, split, options, path), nproc, run / "logs")
    _show(json.loads(path.read_text(encoding="utf-8")), "classes" if classes else "superclasses")
    click.echo(f"all figures  {path}")


@click.command(short_help="Classify images with the classifier of a run.")
@run_argument
@click.argument("images", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@device_option
def predict(run: Path, images: tuple[Path, ...], device: str) -> None:
    """Classify IMAGES with the classifier of RUN: prints the five most probable classes of each."""
    from rich.console import Console
    from rich.table import Table

    from cifarscale.distributed.group import pick_device
    from cifarscale.inference import predict as predict_images
    from cifarscale.trained import load_classifier

    trained = load_classifier(run, pick_device(device))
    console = Console()
    for path, guesses in zip(images, predict_images(trained, images), strict=True):
        console.print(str(path), markup=False, highlight=False, soft_wrap=True)
        table = Table("class", "probability")
        for name, probability in guesses:
            table.add_row(name, f"{probability:7.2%}")
        console.print(table)


def _show(result: dict[str, Any], groups: str) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    console.print(
        f"{result['run']} after {result['step']:,} steps on {result['samples']:,} {result['split']} samples: "
        f"top-1 {result['top1']:.2%}, top-5 {result['top5']:.2%}, loss {result['loss']:.4f}",
        highlight=False,
        soft_wrap=True,
    )
    ranked = sorted(result[groups].items(), key=lambda item: -(item[1] if item[1] is not None else -1))
    table = Table(groups, "top-1")
    for name, value in ranked:
        table.add_row(name, "–" if value is None else f"{value:7.2%}")
    console.print(table)

"""Whether trainings that are stopped halfway and resumed end as those that are not: a table in Markdown.

    python tests/bench/bench_resume.py [--steps 20] [--device cuda] [RECIPE …]

On drawn data, with the recipe's own precision and microbatches; exit code 1 if one differs.
"""

import sys
import tempfile
from pathlib import Path

import click

sys.path.insert(0, str(Path(__file__).parents[1]))
from runs import Run, run_recipe

from cifarscale.config.load import load_training_recipe
from cifarscale.data.build import build_shards
from cifarscale.errors import Interrupted
from cifarscale.runs.options import RunOptions
from cifarscale.tasks.training import resolve
from cifarscale.training.signals import StopRequest

RECIPES = ("cnn", "resnet", "dcgan", "dcgan-plus")


def differs(name: str, steps: int, shards: Path, device: str) -> str:
    """What differs first between a run and one that was stopped halfway; nothing if they are equal in every bit."""
    changes = (f"training.max_steps={steps}", "training.log_every=1", "evaluation.every=0")
    own = ('distance.features="none"', "distance.every=0") if "dcgan" in name else ()
    recipe = resolve(load_training_recipe(name, (*changes, *own)), shards)
    options = RunOptions(shards, device)
    with tempfile.TemporaryDirectory() as folder:
        whole, resumed = Path(folder, "whole"), Path(folder, "resumed")
        run_recipe(recipe, whole, options)
        stop = StopRequest()
        stop.after_step = steps // 2
        try:
            run_recipe(recipe, resumed, options, None, stop)
        except Interrupted:
            run_recipe(recipe, resumed, options)
        try:
            Run(whole).assert_same_as(Run(resumed))
        except AssertionError as error:
            return str(error).splitlines()[0] or "differs"
    return ""


@click.command()
@click.option("--steps", default=20)
@click.option("--device", default="cuda")
@click.argument("recipes", nargs=-1)
def main(steps: int, device: str, recipes: tuple[str, ...]) -> None:
    """Print the table."""
    click.echo(f"Trainings of {steps} steps, stopped after {steps // 2} and resumed, against those that go through:\n")
    click.echo("| recipe | weights, moments, losses |\n| --- | --- |")
    found = []
    with tempfile.TemporaryDirectory() as folder:
        shards = Path(folder, "synthetic")
        build_shards("synthetic", shards)
        for name in recipes or RECIPES:
            found.append(differs(name, steps, shards, device))
            click.echo(f"| `{name}` | {found[-1] or 'equal in every bit'} |")
    sys.exit(any(found))


if __name__ == "__main__":
    main()

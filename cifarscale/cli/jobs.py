"""`cifarscale jobs` and `cifarscale models`: what there is to run."""

from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cifarscale.cli.options import scale_option, set_option
from cifarscale.errors import typed
from cifarscale.log import plain_table

if TYPE_CHECKING:
    from cifarscale.training.cost import ModelSummary


@click.group(short_help="List, show and copy recipes.")
def jobs() -> None:
    """List, show and copy the recipes that can be run."""


@jobs.command("list")
def list_jobs() -> None:
    """All recipes that can be named here; `cifarscale jobs show` tells the file of one, and all of its keys."""
    from rich.console import Console
    from rich.table import Column

    from cifarscale.config.load import load_recipe, recipe_files
    from cifarscale.config.recipe import TrainingRecipe

    known = (Column(name, no_wrap=True) for name in ("name", "task"))
    table = plain_table(*known, Column("steps", justify="right", no_wrap=True), "description")
    for name, path in recipe_files().items():
        job = load_recipe(str(path))
        steps = f"{job.training.max_steps:,}" if isinstance(job, TrainingRecipe) else "–"
        table.add_row(name, job.task, steps, job.description)
    Console(markup=False).print(table)


@jobs.command()
@click.argument("recipe")
@set_option
@scale_option
def show(recipe: str, overrides: tuple[str, ...], scale: int) -> None:
    """RECIPE with every default written out, as TOML; what --scale and "auto" have made of it is said above."""
    from cifarscale.config.load import find_recipe, leaves_microbatches_open, load_recipe, recipe_toml, require_training
    from cifarscale.config.ranks import why_auto
    from cifarscale.config.scale import differences, scaled

    click.echo(f"# {find_recipe(recipe)}")
    shown = load_recipe(recipe, overrides)
    if leaves_microbatches_open(recipe, overrides):
        click.echo(f'# training.microbatches = "auto" is {why_auto(require_training(shown, recipe))}')
    if scale > 1:
        before = require_training(shown, recipe)
        shown = scaled(before, scale)
        for line in differences(before, shown):
            click.echo(f"# --scale {scale}: {line}")
    click.echo(recipe_toml(shown), nl=False)


@jobs.command()
@click.argument("task", required=False)
def keys(task: str | None) -> None:
    """All keys of recipes, or those of a TASK (classifier, gan, …). Prints Markdown."""
    from cifarscale.config.reference import reference
    from cifarscale.config.registry import task_names
    from cifarscale.config.validation import nearest
    from cifarscale.errors import ConfigError

    if task and task not in task_names():
        raise ConfigError(f"unknown task {task!r}{nearest(task, task_names())}; valid are {', '.join(task_names())}")
    click.echo(reference(task or ""), nl=False)


@jobs.command()
@click.argument("recipe")
@click.argument("target", type=click.Path(path_type=Path), required=False)
def copy(recipe: str, target: Path | None) -> None:
    """Copy RECIPE to TARGET (default: jobs/RECIPE.toml here), to change it."""
    from cifarscale.config.load import find_recipe
    from cifarscale.config.lookup import copy_file, read_toml

    source = find_recipe(recipe)
    target = target or Path("jobs") / f"{Path(recipe).stem}.toml"
    copy_file(source, target)
    command = "sweep" if read_toml(source).get("task") == "sweep" else "train"
    click.echo(f"{target}; next: cifarscale {command} {typed(target)}")


@click.command(short_help="List the networks that recipes can name.")
@click.argument("recipe", required=False)
@click.option("--module", "modules", multiple=True, help="A .py file or module with networks; repeatable.")
def models(recipe: str | None, modules: tuple[str, ...]) -> None:
    """The networks that recipes can name, with their parameters and multiply-accumulates an image.

    Those of your own are listed too: of the modules that RECIPE names, or of --module. An indented line is the network
    above it with one option changed. Networks are counted for CIFAR-100.
    """
    from rich.console import Console
    from rich.padding import Padding
    from rich.table import Column

    from cifarscale.config.code import load_module
    from cifarscale.config.load import load_training_recipe
    from cifarscale.tasks.base import tasks_named

    tasks_named()  # the plugins among them may register networks
    chosen = load_training_recipe(recipe) if recipe else None
    codes = [load_module(module, "--module") for module in modules]
    asked = [("", None), *((code, None) for code in codes), *([(chosen.code, chosen)] if chosen else [])]
    numbers = (Column(name, justify="right", no_wrap=True) for name in ("parameters", "MACs"))
    table = plain_table(Column("model", max_width=34), *numbers, "what it is")
    lines = (line for code, of in asked for task in tasks_named(code).values() for line in task.models(code, of))
    of_networks: dict[str, list[ModelSummary]] = {}
    for summary in dict.fromkeys(lines):
        of_networks.setdefault(summary.name, []).append(summary)
    for summary in chain.from_iterable(of_networks.values()):
        model = Padding(summary.options, (0, 0, 0, 2)) if summary.options else summary.name
        parameters = "–" if summary.parameters is None else f"{summary.parameters:,}"
        macs = "–" if summary.macs is None else f"{summary.macs / 1e6:.2f} M"
        table.add_row(model, parameters, macs, summary.description)
    Console(markup=False).print(table)

"""Measurements by hand: a run like any other, in a temporary folder, whose result goes where one wants it."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cifarscale.config.recipe import Recipe
    from cifarscale.runs.options import RunOptions


def measured(
    recipe: "Recipe",
    data: str | None,
    options: "RunOptions",
    nproc: int,
    out: Path | None,
    logs: Path | None,
    in_full: bool = False,
) -> None:
    """Runs a recipe that trains nothing, and shows the result.

    Args:
        data: a data set or a folder of shards; None for the recipe's own.
        out: file for the result, as JSON; None for none.
        logs: folder for what ranks print; None for one that is removed.
        in_full: whether to show every class.
    """
    from cifarscale.launch.local import run_once
    from cifarscale.runs.files import write_json_atomically
    from cifarscale.tasks.base import task_of

    result = run_once(recipe, data, options, nproc, logs)
    if out is not None:
        write_json_atomically(out, result)
    task_of(recipe).view.print_result(result, Path(), in_full)

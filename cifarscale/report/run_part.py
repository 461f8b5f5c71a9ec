"""A run or a sweep as a part of a page."""

import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cifarscale.config.keys import dotted
from cifarscale.config.load import recipe_toml
from cifarscale.config.recipe import Recipe, TrainingRecipe
from cifarscale.errors import RunError
from cifarscale.report.recipes import Difference, command, differences
from cifarscale.runs.run_folder import RunFolder
from cifarscale.slurm.status import folder_state
from cifarscale.tasks.base import task_of
from cifarscale.tracking.charts import Line
from cifarscale.tracking.metrics import read_metrics
from cifarscale.tracking.parts import Drawing, Fact, Section, data_uri, shown


@dataclass(frozen=True)
class RunPart:
    """All that a page says of a run or a sweep.

    Attributes:
        key: names it in ids of the page.
        named: the recipe that differences are from, empty if there is none of that name.
        changed: keys that are not as they would be by themselves; None where that is not known.
        lines: of its log.
        is_logged: whether there is a log once it has begun.
    """

    key: str
    title: str
    recipe: Recipe
    state: str
    facts: Sequence[Fact]
    chart_title: str
    drawings: Sequence[Drawing]
    sections: Sequence[Section]
    toml: str
    toml_uri: str
    named: str
    changed: Sequence[Difference] | None
    command: str
    environment: Sequence[Fact]
    lines: Sequence[Line]
    is_logged: bool


def run_part(path: Path, key: str, data: str | None) -> RunPart:
    """Reads a folder, and computes what a page shows of it. Nothing is written.

    Raises: RunError if it is not a run's or a sweep's folder, or cannot be read.
    """
    folder = RunFolder(path)
    recipe = folder.load_recipe()
    try:
        return _read(folder, recipe, key, data)
    except (OSError, ValueError, KeyError, TypeError) as error:
        what = f"{type(error).__name__}: {error}".splitlines()[0]
        raise RunError(f"{path} cannot be read ({what}). Leave it out, or restore its files") from error


def _read(folder: RunFolder, recipe: Recipe, key: str, data: str | None) -> RunPart:
    result, lines, environment = folder.result(), read_metrics(folder.metrics), folder.environment()
    view = task_of(recipe).view
    named, changed = differences(recipe)
    toml = recipe_toml(recipe)
    trained = result if isinstance(recipe, TrainingRecipe) else None
    of_result = [Fact(*form(trained[key])) for key, form in _OF_A_RESULT.items() if trained and key in trained]
    return RunPart(
        key=key,
        title=folder.path.resolve().name,
        recipe=recipe,
        state=folder_state(folder, view.has_begun(folder)),
        facts=view.facts(folder, recipe, result, lines) + of_result,
        chart_title=view.chart_title,
        drawings=view.drawings(folder, recipe, lines, key),
        sections=view.sections(folder, recipe, data),
        toml=toml,
        toml_uri=data_uri(toml.encode(), "text/plain"),
        named=named,
        changed=changed,
        command=command(recipe, environment),
        environment=_environment(environment),
        lines=lines,
        is_logged=task_of(recipe).command != "submit",
    )


_OF_A_RESULT: dict[str, Callable[[Any], tuple[str, str]]] = {
    "parameters": lambda value: ("parameters", f"{value:,}"),
    "macs": lambda value: ("multiply-accumulates an image", f"{value / 1e6:,.2f} M"),
    "steps": lambda value: ("steps", f"{value:,}"),
    "images": lambda value: ("images seen", f"{value:,}"),
    "training_flops": lambda value: ("FLOPs in training", f"{value:.2e}"),
    "images_per_second": lambda value: ("images a second", f"{value:,.0f}"),
    "seconds": lambda value: ("time in steps", f"{value / 60:,.1f} min" if value >= 60 else f"{value:.1f} s"),
}


def _environment(environment: Mapping[str, Any]) -> list[Fact]:
    """What the run ran on; how it was called, where a person did."""
    facts = []
    for key, value in dotted({key: value for key, value in environment.items() if key not in ("command", "starts")}):
        if value is not None:
            facts.append(Fact(key.replace("_", " ").replace(".", " "), shown(value)))
    words = environment.get("command")
    if isinstance(words, list) and words and Path(str(words[0])).name in ("cifarscale", "__main__.py"):
        facts.append(Fact("called as", shlex.join(["cifarscale", *map(str, words[1:])])))
    starts = environment.get("starts", [])
    return [*facts, *([Fact("starts", str(len(starts)))] if len(starts) > 1 else [])]

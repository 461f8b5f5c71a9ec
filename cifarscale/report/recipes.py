"""What is particular about a recipe, and how to run it again."""

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cifarscale.config.keys import dotted
from cifarscale.config.load import load_recipe, parse_recipe, recipe_files
from cifarscale.config.recipe import Recipe, TrainingRecipe, resolved
from cifarscale.config.registry import dataset_names
from cifarscale.config.validation import variants_of
from cifarscale.data.build import folder_that_is_here
from cifarscale.errors import CifarscaleError
from cifarscale.tasks.base import task_of

_OF_THE_RUN = ("name", "description", "data.fingerprint", "task")
"""Keys that are a run's own, and no choice."""
_ABSENT = "not set"


@dataclass(frozen=True)
class Difference:
    """A key of a recipe that is not as it would be by itself.

    Attributes:
        named: its value in the recipe of that name; None if there is no such recipe here.
        default: its value where nothing is said.
    """

    key: str
    value: Any
    named: Any
    default: Any


def differences(recipe: Recipe) -> tuple[str, list[Difference] | None]:
    """How a job differs from the recipe of its name, and from the defaults of its schema.

    Returns: the name of that recipe, empty if there is none of the same task here; and the keys.
    """
    own, default = dict(dotted(resolved(recipe))), _defaults(recipe)
    if not default:
        return "", None
    name, named = _named(recipe)
    differing = []
    for key, value in own.items():
        usual, before = default.get(key, _ABSENT), named.get(key, _ABSENT) if name else None
        if key not in _OF_THE_RUN and (value != usual or (name and value != before)):
            differing.append(Difference(key, value, before, usual))
    return name, differing


def command(recipe: Recipe, environment: Mapping[str, Any]) -> str:
    """What runs a recipe again, on as many processes, from a file of its own."""
    words = ["cifarscale", task_of(recipe).command, "recipe.toml"]
    if not isinstance(recipe, TrainingRecipe):
        return shlex.join(words)
    dataset = recipe.data.dataset
    if dataset not in dataset_names(recipe.code) and folder_that_is_here(dataset) is None:
        words += ["--data", f"FOLDER-OF-{dataset}"]
    if (ranks := environment.get("world_size", 1)) != 1:
        words += ["--nproc", str(ranks)]
    device = environment.get("device")
    if isinstance(device, str):
        words += ["--device", "cpu" if device.startswith("CPU") else "cuda"]
    return shlex.join(words)


def _defaults(recipe: Recipe) -> dict[str, Any]:
    """The recipe that names no more than its kinds of sections, by dotted keys; and the kinds that it would have."""
    own, variants = resolved(recipe), variants_of(type(recipe))
    kinds = {key: {"name": own[key]["name"]} for key in variants}
    try:
        values = resolved(parse_recipe({"task": recipe.task, **kinds}, recipe.name))
    except CifarscaleError:  # such as of a sweep: one without a space is none
        return {}
    return dict(dotted(values)) | {f"{key}.name": default for key, (default, *_) in variants.items()}


def _named(recipe: Recipe) -> tuple[str, dict[str, Any]]:
    path = recipe_files().get(recipe.name)
    if path is None:
        return "", {}
    try:
        named = load_recipe(str(path))
    except CifarscaleError:
        return "", {}
    return (recipe.name, dict(dotted(resolved(named)))) if named.task == recipe.task else ("", {})

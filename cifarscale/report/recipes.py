"""What is particular about a recipe, and how to run it again."""

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cifarscale.config.keys import dotted
from cifarscale.config.load import load_recipe, parse_recipe, recipe_files
from cifarscale.config.recipe import Recipe, resolved
from cifarscale.config.validation import variants_of
from cifarscale.data.names import DATASETS
from cifarscale.errors import CifarscaleError

_OF_THE_RUN = ("name", "description", "data.fingerprint", "task")
"""Keys that are a run's own, and no choice."""
_ABSENT = "not a key"


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


def differences(job: Recipe) -> tuple[str, list[Difference]]:
    """How a job differs from the recipe of its name, and from the defaults of its schema.

    Returns: the name of that recipe, empty if there is none of the same task here; and the keys.
    """
    own, default = dict(dotted(resolved(job))), _defaults(job)
    name, named = _named(job)
    found = []
    for key, value in own.items():
        usual, before = default.get(key, _ABSENT), named.get(key, _ABSENT) if name else None
        if key not in _OF_THE_RUN and (value != usual or (name and value != before)):
            found.append(Difference(key, value, before, usual))
    return name, found


def command(job: Recipe, environment: Mapping[str, Any]) -> str:
    """What runs a job again, on as many processes, from the recipe in a file of its own."""
    if job.task == "sweep":
        return "cifarscale sweep recipe.toml"
    if job.task not in ("classifier", "gan"):
        return "cifarscale submit recipe.toml"
    words = ["cifarscale", "train", "recipe.toml"]
    dataset = resolved(job)["data"]["dataset"]
    if dataset not in DATASETS:
        words += ["--data", f"FOLDER-OF-{dataset}"]
    if (ranks := environment.get("world_size", 1)) != 1:
        words += ["--nproc", str(ranks)]
    device = environment.get("device")
    if isinstance(device, str):
        words += ["--device", "cpu" if device.startswith("CPU") else "cuda"]
    return shlex.join(words)


def _defaults(job: Recipe) -> dict[str, Any]:
    """The job that names no more than its kinds of sections, by dotted keys; and the kinds that it would have."""
    own, variants = resolved(job), variants_of(type(job))
    kinds = {key: {"name": own[key]["name"]} for key in variants}
    try:
        values = resolved(parse_recipe({"task": job.task, **kinds}, job.name))
    except CifarscaleError:  # such as of a sweep: one without a space is none
        return {}
    return dict(dotted(values)) | {f"{key}.name": default for key, (default, *_) in variants.items()}


def _named(job: Recipe) -> tuple[str, dict[str, Any]]:
    path = recipe_files().get(job.name)
    if path is None:
        return "", {}
    try:
        named = load_recipe(str(path))
    except CifarscaleError:
        return "", {}
    return (job.name, dict(dotted(resolved(named)))) if named.task == job.task else ("", {})

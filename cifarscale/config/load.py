"""Recipes from TOML files and `--set key=value`, with errors that name the key, the value and what is valid."""

import hashlib
import json
import re
import tomllib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar, cast

import tomli_w
from pydantic import BaseModel, ValidationError

from cifarscale.config.distance import DistanceRecipe
from cifarscale.config.keys import set_key
from cifarscale.config.lookup import find_file, named_files, read_toml
from cifarscale.config.recipe import Recipe, TrainingRecipe, resolved
from cifarscale.config.tasks import TASKS
from cifarscale.config.validation import explain, variants_of
from cifarscale.errors import ConfigError
from cifarscale.files import bundled_folders

SomeRecipe = TypeVar("SomeRecipe", bound=Recipe)
_NOT_COMPUTED = ("name", "description", "tracking")


def recipe_folders() -> tuple[Path, ...]:
    """Where recipes are looked up by name, first match wins: ./jobs, the bundled ones, the checkout's."""
    here = (Path("jobs"),) if Path("jobs").is_dir() else ()
    return here + bundled_folders("jobs")


def recipe_files() -> dict[str, Path]:
    """All recipes that can be named, name to file, in alphabetical order."""
    return named_files(recipe_folders())


def find_recipe(name_or_path: str) -> Path:
    """The file of a recipe given by path or by name.

    Raises: ConfigError if there is none, with the nearest name.
    """
    return find_file("recipe", name_or_path, recipe_folders())


def load_recipe(name_or_path: str, overrides: Iterable[str] = ()) -> Recipe:
    """The checked job of a name or path, with `key=value` overrides applied in order.

    Raises: ConfigError naming the key, the value, and what is valid.
    """
    path = find_recipe(name_or_path)
    values = read_toml(path)
    for override in overrides:
        _apply_override(values, override)
    values["name"] = values.get("name") or _name_of(path)
    return parse_recipe(values, str(path))


def _name_of(path: Path) -> str:
    """A file's name, with what a job's name cannot hold (`#`, quotes, brackets) as dashes."""
    return re.sub(r"[^\w .+-]", "-", path.stem).lstrip(" .+-") or "recipe"


def load_training_recipe(name_or_path: str, overrides: Iterable[str] = ()) -> TrainingRecipe:
    """`load_recipe` for what is trained. Raises: ConfigError also if the job is of another kind."""
    job = load_recipe(name_or_path, overrides)
    if not isinstance(job, TrainingRecipe):
        raise ConfigError(f"{name_or_path} is a job of task {job.task!r}, which trains nothing. Run: cifarscale --help")
    return job


def load_fid(overrides: Iterable[str] = ()) -> DistanceRecipe:
    """The job `fid`. Raises: ConfigError also if a file of that name is a job of another kind."""
    job = load_recipe("fid", overrides)
    if not isinstance(job, DistanceRecipe):
        raise ConfigError(f"{find_recipe('fid')} is a job of task {job.task!r}, and this needs task = 'distance'")
    return job


def parse_recipe(values: dict[str, Any], where: str) -> Recipe:
    """A job from plain values; `where` stands in front of an error.

    Raises: ConfigError.
    """
    task = values.get("task")
    if not isinstance(task, str) or task not in TASKS:
        raise ConfigError(
            f"{where}: task = {task!r} is not valid; a recipe needs one of: {', '.join(map(repr, TASKS))}"
        )
    for key, value in _numbers(values):
        if abs(value) >= 2**63:
            raise ConfigError(f"{where}: {key} = {value}: whole numbers must be less than {2**63}")
    try:
        return TASKS[task].model_validate(_with_default_variants(values, TASKS[task]))
    except ValidationError as error:
        raise ConfigError(f"{where}: {explain(error, TASKS[task])}") from error


def with_values(job: SomeRecipe, **changes: Any) -> SomeRecipe:
    """The job with dotted keys (dots written as two underscores) replaced, checked again."""
    values = resolved(job)
    for key, value in changes.items():
        set_key(values, key.replace("__", "."), value)
    return cast(SomeRecipe, parse_recipe(values, job.name))


def recipe_toml(job: Recipe) -> str:
    """The resolved job as TOML; loading it again gives an equal one."""
    return tomli_w.dumps(resolved(job))


def recipe_hash(job: Recipe) -> str:
    """Eight hexadecimal digits of what the job computes: all of it, resolved, but its name and who is told of it."""
    values = {key: value for key, value in resolved(job).items() if key not in _NOT_COMPUTED}
    if values.get("later") == []:
        del values["later"]  # as before there was this key: the hash names folders
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:8]


def _numbers(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, int]]:
    """The whole numbers in the sections of a recipe, by their dotted keys."""
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _numbers(value, f"{prefix}{key}.")
        elif isinstance(value, int):
            yield prefix + key, value


def _apply_override(values: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    key = key.strip()
    if not separator or not key:
        raise ConfigError(f"--set {override!r} is not of the form key=value, such as training.learning_rate=3e-4")
    try:
        set_key(values, key, _parse_value(text.strip()))
    except ValueError as error:
        raise ConfigError(f"--set {override!r}: {error}") from error


def _parse_value(text: str) -> Any:
    """A TOML value, or the text itself where it is not one, so that names need no quotes on a command line."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _with_default_variants(values: dict[str, Any], model: type[BaseModel]) -> dict[str, Any]:
    """The values, with `name` filled in where such a section leaves it to the default."""
    filled = dict(values)
    for key, (default, *_) in variants_of(model).items():
        section = filled.get(key, {})
        if isinstance(section, dict):
            filled[key] = {"name": default, **section}
    return filled

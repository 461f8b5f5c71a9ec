"""Recipes from TOML files and `--set key=value`, with errors that name the key, the value and what is valid."""

import hashlib
import json
import os
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar, cast

import tomli_w
from pydantic import BaseModel, ValidationError

from cifarscale.config.code import load_code
from cifarscale.config.keys import set_key
from cifarscale.config.lookup import bundled_folders, find_file, named_files, read_toml
from cifarscale.config.recipe import UNHASHED_VALUES, Recipe, TrainingRecipe, resolved
from cifarscale.config.registry import is_imported, registered_task, task_names
from cifarscale.config.validation import explain, nearest, variants_of
from cifarscale.errors import ConfigError

SomeRecipe = TypeVar("SomeRecipe", bound=Recipe)
Changes = Mapping[str, Any] | str | Iterable[str | tuple[str, Any]]
"""Changed keys: dotted ones with their values, or a text `KEY=VALUE` as `--set` takes it, or several."""
_NOT_COMPUTED = ("name", "description", "budget", "tracking")


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


def load_recipe(name_or_path: str, overrides: Changes = (), of_run: bool = False) -> Recipe:
    """The checked recipe of a name or path, with overrides applied in order.

    Args:
        of_run: whether it lies in the folder of a run, whose code is imported only if it is trusted.
    Raises: ConfigError naming the key, the value, and what is valid.
    """
    path = find_recipe(name_or_path)
    values = _written(path, overrides)
    values["name"] = values.get("name") or _name_of(path)
    return parse_recipe(values, str(path), path.parent, of_run)


def leaves_microbatches_open(name_or_path: str, overrides: Changes = ()) -> bool:
    """Whether a recipe, with overrides, says `training.microbatches = "auto"`; once loaded it has a number."""
    training = _written(find_recipe(name_or_path), overrides).get("training")
    return isinstance(training, dict) and training.get("microbatches") == "auto"


def _written(path: Path, overrides: Changes) -> dict[str, Any]:
    """What stands in a recipe's file, with overrides applied in order."""
    values = read_toml(path)
    _apply(values, overrides)
    return values


def _name_of(path: Path) -> str:
    """A file's name, with what a recipe's name cannot hold (`#`, quotes, brackets) as dashes."""
    return re.sub(r"[^\w .+-]", "-", path.stem).lstrip(" .+-") or "recipe"


def load_training_recipe(name_or_path: str, overrides: Changes = (), of_run: bool = False) -> TrainingRecipe:
    """`load_recipe` for what is trained. Raises: ConfigError also if the recipe is of another kind."""
    return require_training(load_recipe(name_or_path, overrides, of_run), name_or_path)


def require_training(recipe: Recipe, where: str) -> TrainingRecipe:
    """Raises: ConfigError, which begins with `where`, for a recipe that trains nothing."""
    if not isinstance(recipe, TrainingRecipe):
        command = f"cifarscale sweep {where}" if recipe.task == "sweep" else "cifarscale --help"
        raise ConfigError(f"{where} is a recipe of task {recipe.task!r}, which trains nothing. Run: {command}")
    return recipe


def require_task(recipe: Recipe, task: str, where: str) -> None:
    """Raises: ConfigError, which begins with `where`, for a recipe of another task."""
    if recipe.task != task:
        raise ConfigError(
            f"{where} is a recipe of task {recipe.task!r}, and this needs task = {task!r}. Such a recipe: cifarscale "
            f"jobs show {'sweep-demo' if task == 'sweep' else 'fid'}"
        )


def parse_recipe(values: dict[str, Any], where: str, folder: Path | None = None, of_run: bool = False) -> Recipe:
    """A recipe from plain values.

    Args:
        where: stands in front of an error.
        folder: in which the code lies that it names; None if that is imported already.
        of_run: see `load_recipe`.
    Raises: ConfigError.
    """
    for key, value in _numbers(values):
        if abs(value) >= 2**63:
            raise ConfigError(f"{where}: {key} = {value}: whole numbers must be less than {2**63}")
    task, modules, code = values.get("task"), values.get("modules"), ""
    if task in task_names():
        registered_task(str(task))  # before code that may want a name which it has
    if isinstance(modules, list) and modules:
        code = load_code(list(map(str, modules)), folder, str(values.get("code", "")), of_run, where)
        values = {**values, "code": code}
    valid = task_names(code)
    if not isinstance(task, str) or not (task in valid or (code and not is_imported(code))):
        said = "it has no task" if task is None else f"task = {task!r} is not valid{nearest(str(task), valid)}"
        raise ConfigError(f"{where}: {said}; a recipe needs one of: {', '.join(map(repr, valid))}")
    registered = registered_task(task, code)
    schema = registered.schema(code)
    try:
        return schema.model_validate(_with_default_variants(values, schema))
    except ValidationError as error:
        raise ConfigError(f"{where}: {explain(error, schema)}") from error


def with_values(recipe: SomeRecipe, **changes: Any) -> SomeRecipe:
    """The recipe with dotted keys (dots written as two underscores) replaced, checked again."""
    values = resolved(recipe)
    for key, value in changes.items():
        set_key(values, key.replace("__", "."), value)
    return cast(SomeRecipe, parse_recipe(values, recipe.name))


def with_overrides(recipe: Recipe, overrides: Changes) -> Recipe:
    """A recipe with overrides applied in order, checked again. Raises: ConfigError as `load_recipe` does."""
    values = resolved(recipe)
    _apply(values, overrides)
    return parse_recipe(values, recipe.name)


def recipe_toml(recipe: Recipe) -> str:
    """The resolved recipe as TOML; loading it again gives an equal one."""
    return tomli_w.dumps(resolved(recipe))


def computed(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a recipe, by plain or by dotted keys, but for its name and who is told of it."""
    return {key: value for key, value in values.items() if key.partition(".")[0] not in _NOT_COMPUTED}


def recipe_hash(recipe: Recipe) -> str:
    """Eight hexadecimal digits of what the recipe computes: all of it, resolved, but its name, its budget, and who is
    told of it."""
    values = computed(resolved(recipe))
    for key, value in UNHASHED_VALUES.items():
        section, _, last = key.rpartition(".")
        holder = values.get(section) if section else values
        if holder and holder.get(last) == value:
            del holder[last]
    if values.get("distillation", {}).get("weights"):
        del values["distillation"]["teacher"]  # it is known by its weights, wherever it lies
    if isinstance(recipe, TrainingRecipe) and recipe.order:
        values["order"] = recipe.order
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:8]


def _numbers(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, int]]:
    """The whole numbers in the sections of a recipe, by their dotted keys."""
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _numbers(value, f"{prefix}{key}.")
        elif isinstance(value, int):
            yield prefix + key, value


def _apply(values: dict[str, Any], overrides: Changes) -> None:
    for override in overrides.items() if isinstance(overrides, Mapping) else overrides:
        key, value = _parse_override(override) if isinstance(override, str) else (override[0], _plain(*override))
        try:
            set_key(values, key, value)
        except ValueError as error:
            shown = override if isinstance(override, str) else f"{key}={value}"
            raise ConfigError(f"--set {shown!r}: {error}") from error


def _parse_override(override: str) -> tuple[str, Any]:
    key, separator, text = override.partition("=")
    key = key.strip()
    if not separator or not key:
        raise ConfigError(f"--set {override!r} is not of the form key=value, such as training.learning_rate=3e-4")
    return key, _parse_value(text.strip())


def _plain(key: str, value: Any) -> Any:
    """A value of Python's as a recipe holds it: paths as text, numbers of NumPy's as Python's, tuples as lists."""

    def other(value: Any) -> Any:
        return value.item() if hasattr(value, "item") else os.fspath(value)

    try:
        return json.loads(json.dumps(value, default=other))
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{key} = {value!r} is no value of a recipe; valid are those of TOML") from error


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

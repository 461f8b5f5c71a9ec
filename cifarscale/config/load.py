"""Recipes from TOML files and `--set key=value`, with errors that name the key, the value and what is valid."""

import difflib
import hashlib
import json
import shutil
import tomllib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar, cast, get_args

import tomli_w
from pydantic import BaseModel, ValidationError

from cifarscale.config.distance import FidJob
from cifarscale.config.recipe import Job, Recipe, resolved
from cifarscale.config.tasks import TASKS
from cifarscale.errors import ConfigError
from cifarscale.files import bundled_folders, writing_to

SomeJob = TypeVar("SomeJob", bound=Job)


def recipe_folders() -> tuple[Path, ...]:
    """Where recipes are looked up by name, first match wins: ./jobs, the bundled ones, the checkout's."""
    here = (Path("jobs"),) if Path("jobs").is_dir() else ()
    return here + bundled_folders("jobs")


def recipe_files() -> dict[str, Path]:
    """All recipes that can be named, name to file, in alphabetical order."""
    files: dict[str, Path] = {}
    for folder in recipe_folders():
        for path in sorted(folder.glob("*.toml")):
            files.setdefault(path.stem, path)
    return dict(sorted(files.items()))


def find_recipe(name_or_path: str) -> Path:
    """The file of a recipe given by path or by name.

    Raises: ConfigError if there is none, with the nearest name.
    """
    if name_or_path.endswith(".toml"):
        path = Path(name_or_path)
        if path.is_file():
            return path
        raise ConfigError(f"no recipe file {path}. Run: cifarscale jobs list")
    files = recipe_files()
    if name_or_path in files:
        return files[name_or_path]
    raise ConfigError(
        f"unknown recipe {name_or_path!r}{_nearest(name_or_path, files)}; there are: {', '.join(files) or 'none'}. "
        "Name one of these, or the path of a .toml file."
    )


def load_job(name_or_path: str, overrides: Iterable[str] = ()) -> Job:
    """The checked job of a name or path, with `key=value` overrides applied in order.

    Raises: ConfigError naming the key, the value, and what is valid.
    """
    path = find_recipe(name_or_path)
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from error
    for override in overrides:
        _apply_override(values, override)
    values["name"] = values.get("name") or path.stem
    return parse_job(values, str(path))


def load_recipe(name_or_path: str, overrides: Iterable[str] = ()) -> Recipe:
    """`load_job` for what is trained. Raises: ConfigError also if the job is of another kind."""
    job = load_job(name_or_path, overrides)
    if not isinstance(job, Recipe):
        raise ConfigError(f"{name_or_path} is a job of task {job.task!r}, which trains nothing. Run: cifarscale --help")
    return job


def load_fid(overrides: Iterable[str] = ()) -> FidJob:
    """The job `fid`. Raises: ConfigError also if a file of that name is a job of another kind."""
    job = load_job("fid", overrides)
    if not isinstance(job, FidJob):
        raise ConfigError(f"{find_recipe('fid')} is a job of task {job.task!r}, and this needs task = 'fid'")
    return job


def parse_job(values: dict[str, Any], where: str) -> Job:
    """A job from plain values; `where` stands in front of an error.

    Raises: ConfigError.
    """
    task = values.get("task")
    if not isinstance(task, str) or task not in TASKS:
        raise ConfigError(
            f"{where}: task = {task!r} is not valid; a recipe needs one of: {', '.join(map(repr, TASKS))}"
        )
    try:
        return TASKS[task].model_validate(_with_default_variants(values, TASKS[task]))
    except ValidationError as error:
        raise ConfigError(f"{where}: {_explain(error, TASKS[task])}") from error


def with_values(job: SomeJob, **changes: Any) -> SomeJob:
    """The job with dotted keys (dots written as two underscores) replaced, checked again."""
    values = resolved(job)
    for key, value in changes.items():
        *sections, last = key.split("__")
        table = values
        for section in sections:
            table = table[section]
        table[last] = value
    return cast(SomeJob, parse_job(values, job.name))


def recipe_toml(job: Job) -> str:
    """The resolved job as TOML; loading it again gives an equal one."""
    return tomli_w.dumps(resolved(job))


def recipe_hash(job: Job) -> str:
    """Eight hexadecimal digits of what the job computes: all of it, resolved, but its name and description."""
    values = {key: value for key, value in resolved(job).items() if key not in ("name", "description")}
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:8]


def copy_recipe(name: str, target: Path) -> None:
    """Copies a recipe's file to start one's own from.

    Raises: ConfigError if the target exists; CifarscaleError if it cannot be written.
    """
    source = find_recipe(name)
    if target.exists():
        raise ConfigError(f"{target} exists already, and is left as it is. Name another file.")
    with writing_to(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)


def _apply_override(values: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    key = key.strip()
    if not separator or not key:
        raise ConfigError(f"--set {override!r} is not of the form key=value, such as training.learning_rate=3e-4")
    *sections, last = key.split(".")
    table = values
    for section in sections:
        table = table.setdefault(section, {})
        if not isinstance(table, dict):
            raise ConfigError(f"--set {override!r}: {section!r} is a value, not a section")
    table[last] = _parse_value(text.strip())


def _parse_value(text: str) -> Any:
    """A TOML value, or the text itself where it is not one, so that names need no quotes on a command line."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _explain(error: ValidationError, recipe_class: type[Job]) -> str:
    """All of a ValidationError in one line, with the nearest valid key where one is unknown."""
    keys = sorted(set(_dotted_keys(recipe_class)))
    variants = _variants(recipe_class)
    parts = []
    for item in error.errors():
        # Pydantic puts the chosen variant's name into an error's path; users never typed it there.
        key = ".".join(str(part) for i, part in enumerate(item["loc"]) if i != 1 or item["loc"][0] not in variants)
        if item["type"] == "extra_forbidden":
            section, dot, word = key.rpartition(".")
            siblings = [name.removeprefix(section + dot) for name in keys if name.rpartition(".")[0] == section]
            near = _nearest(word, siblings, section + dot) or f"; valid here: {', '.join(siblings)}"
            parts.append(f"unknown key {key!r}{near}")
        elif item["type"] == "union_tag_invalid":
            parts.append(f"{key}.name = {item['ctx']['tag']!r}: valid are {item['ctx']['expected_tags']}")
        elif item["type"] == "value_error":
            parts.append(item["msg"].removeprefix("Value error, "))
        else:
            parts.append(f"{key} = {item['input']!r}: {item['msg'][0].lower()}{item['msg'][1:]}")
    return "; ".join(parts)


def _nearest(word: str, valid: Iterable[str], prefix: str = "") -> str:
    matches = difflib.get_close_matches(word, list(valid), n=1)
    return f", did you mean {prefix + matches[0]!r}?" if matches else ""


def _sections(annotation: Any) -> list[type[BaseModel]]:
    """The models in a field's type, through unions and `Annotated`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [section for argument in get_args(annotation) for section in _sections(argument)]


def _dotted_keys(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, field in model.model_fields.items():
        yield prefix + name
        for section in _sections(field.annotation):
            yield from _dotted_keys(section, f"{prefix}{name}.")


def _variants(model: type[BaseModel]) -> dict[str, tuple[str, ...]]:
    """Fields that choose between sections by their `name` (`model`, `optimizer`), with the names, default first."""
    variants = {}
    for key, field in model.model_fields.items():
        sections = _sections(field.annotation)
        if len(sections) > 1:
            names = (get_args(section.model_fields["name"].annotation)[0] for section in sections)
            variants[key] = (field.default.name, *names)
    return variants


def _with_default_variants(values: dict[str, Any], model: type[BaseModel]) -> dict[str, Any]:
    """The values, with `name` filled in where such a section leaves it to the default."""
    filled = dict(values)
    for key, (default, *_) in _variants(model).items():
        section = filled.get(key, {})
        if isinstance(section, dict):
            filled[key] = {"name": default, **section}
    return filled

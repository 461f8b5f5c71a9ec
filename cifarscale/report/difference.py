"""In what two runs differ: keys, code, environment and result."""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cifarscale.config.code import FOLDER, code_files
from cifarscale.config.keys import dotted
from cifarscale.config.load import computed, load_recipe
from cifarscale.config.lookup import read_toml
from cifarscale.config.recipe import Recipe, TrainingRecipe, resolved
from cifarscale.errors import RunError, short_path
from cifarscale.runs.run_folder import RunFolder
from cifarscale.tasks.base import task_of
from cifarscale.tracking.metrics import differs

_SHOWN_OTHERWISE = ("name", "description", "code")
"""Keys of which the names of the runs, or the difference of their code, tell."""
_OF_A_START = ("command", "started", "starts", "slurm_job_id")
_BASE = "base."
"""Stands before the keys of what a sweep varies."""
_IN_ENVIRONMENT = ("name", "task", "device", "world_size")


@dataclass(frozen=True)
class Row:
    """A value that is not the same in both. None stands for one that is not there."""

    key: str
    one: Any
    other: Any


@dataclass(frozen=True)
class Side:
    """A run, a sweep or a recipe, as far as it is compared.

    Attributes:
        values: of the recipe, by dotted keys; those of a sweep's base begin with `base.`.
        code: text of the files of one's own, by path.
        environment, result: by dotted keys; empty where there is none.
    """

    name: str
    values: Mapping[str, Any]
    code: Mapping[str, str]
    environment: Mapping[str, Any] = field(default_factory=dict)
    result: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Difference:
    """In what two sides differ.

    Attributes:
        keys: of the recipes.
        code: lines of a unified diff; empty where the code is the same.
        results: None where one has no result.
    """

    one: Side
    other: Side
    keys: list[Row]
    code: list[str]
    environment: list[Row]
    results: list[Row] | None

    @property
    def is_of_what_is_computed(self) -> bool:
        """Whether these are two runs, rather than one that is told of in another way."""
        return bool(self.code or computed({row.key.removeprefix(_BASE): row for row in self.keys}))


def difference(one: str, other: str) -> Difference:
    """In what two runs differ.

    Args:
        one, other: run folders, or recipes by name or file.
    Raises: ConfigError or RunError if one cannot be read.
    """
    a, b = _side(one), _side(other)
    keys = [row for row in _rows(a.values, b.values) if not _is_open(row)]
    environment = _rows(a.environment, b.environment) if a.environment and b.environment else []
    results = _rows(a.result, b.result) if a.result and b.result else None
    return Difference(a, b, keys, _code_lines(a, b), environment, results)


def _side(name: str) -> Side:
    path = Path(name)
    if path.name == "recipe.toml" and RunFolder(path.parent).is_made:
        path = path.parent
    if path.suffix != ".toml" and len(path.parts) > 1 and not path.is_dir():
        raise RunError(f"there is no run folder {path}. Run: cifarscale runs")
    return _run(RunFolder(path)) if path.is_dir() else _recipe(name, load_recipe(name))


def _recipe(name: str, recipe: Recipe) -> Side:
    values, varied = _values(recipe), task_of(recipe).varied(recipe)
    if varied:
        values |= {f"{_BASE}{key}": value for key, value in _values(varied).items()}
    trained = varied or recipe
    code = code_files(trained.code) if isinstance(trained, TrainingRecipe) and trained.code else {}
    return Side(name, values, {path: _text(content) for path, content in code.items()})


def _run(folder: RunFolder) -> Side:
    values = _values(folder.load_recipe())
    if (base := folder.path / "base.toml").is_file():
        values |= {f"{_BASE}{key}": value for key, value in dotted(read_toml(base)) if key not in _SHOWN_OTHERWISE}
    root = folder.path / FOLDER
    files = sorted(root.rglob("*.py")) if root.is_dir() else []
    code = {file.relative_to(root).as_posix(): _text(file.read_bytes()) for file in files}
    environment = {key: value for key, value in folder.environment().items() if key not in _OF_A_START}
    result = {
        key: value
        for key, value in dotted(folder.result() or {})
        if not (key in _IN_ENVIRONMENT or differs(key) or isinstance(value, list | dict))
    }
    return Side(short_path(folder.path.resolve()), values, code, dict(dotted(environment)), result)


def _values(recipe: Recipe) -> dict[str, Any]:
    return {key: value for key, value in dotted(resolved(recipe)) if key not in _SHOWN_OTHERWISE}


def _rows(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[Row]:
    keys = [key for key in dict.fromkeys([*one, *other]) if one.get(key) != other.get(key)]
    return [Row(key, one.get(key), other.get(key)) for key in keys]


def _is_open(row: Row) -> bool:
    """Whether one side, a recipe that was never started, takes whatever data there is."""
    return row.key.removeprefix(_BASE) == "data.fingerprint" and "" in (row.one, row.other)


def _code_lines(one: Side, other: Side) -> list[str]:
    lines: list[str] = []
    for path in sorted({*one.code, *other.code}):
        a, b = (side.code.get(path, "").splitlines() for side in (one, other))
        names = (f"{side.name}: {path}" if path in side.code else "/dev/null" for side in (one, other))
        lines += difflib.unified_diff(a, b, next(names), next(names), lineterm="")
    return lines


def _text(content: bytes) -> str:
    return content.decode("utf-8", errors="replace")

"""The tasks that recipes can name.

A task is a folder whose `task.py` registers one: those in `tasks/`, `sweep/`, and the modules that installed packages
name as entry points of the group `cifarscale.plugins`. It is imported when a recipe names it.
"""

import importlib
import pkgutil
from collections.abc import Callable
from functools import cache
from importlib.metadata import entry_points
from typing import TypeVar

from cifarscale.config.recipe import Recipe
from cifarscale.errors import ConfigError

PLUGINS = "cifarscale.plugins"


class RegisteredTask:
    """What is known of every task here; `tasks.base.Task` says the rest."""

    name: str
    recipe: type[Recipe]


SomeTask = TypeVar("SomeTask", bound=RegisteredTask)
_REGISTERED: dict[str, RegisteredTask] = {}


def register_task(name: str) -> Callable[[type[SomeTask]], type[SomeTask]]:
    """Registers a class of tasks under what recipes call it: `task = NAME`.

    Raises: ConfigError if the name is taken.
    """

    def register(kind: type[SomeTask]) -> type[SomeTask]:
        if name in _REGISTERED:
            raise ConfigError(f"task {name!r} is registered already, by {type(_REGISTERED[name]).__module__}")
        _REGISTERED[name] = kind()
        _REGISTERED[name].name = name
        return kind

    return register


@cache
def _modules() -> dict[str, str]:
    """The module that registers each task, by the task's name."""
    tasks = importlib.import_module("cifarscale.tasks")
    folders = (folder.name for folder in pkgutil.iter_modules(tasks.__path__) if folder.ispkg)
    own = {name: f"cifarscale.tasks.{name}.task" for name in folders} | {"sweep": "cifarscale.sweep.task"}
    return own | {plugin.name: plugin.value for plugin in entry_points(group=PLUGINS)}


def task_names() -> list[str]:
    """What a recipe's `task` may be."""
    return list(_modules())


def registered_task(name: str) -> RegisteredTask:
    """The task of a name. Raises: KeyError if there is none."""
    module = _modules()[name]
    importlib.import_module(module)
    return _REGISTERED[name]

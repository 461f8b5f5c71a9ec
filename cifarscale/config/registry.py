"""The tasks, networks and data sets that recipes can name.

A task is a folder whose `task.py` registers one: those in `tasks/`, `sweeps/`, and the modules that installed packages
name as entry points of the group `cifarscale.plugins`. It is imported when a recipe names it. So is the module of a
package's data set, whose entry point is called `dataset.NAME`.
"""

import importlib
import inspect
import pkgutil
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from importlib.metadata import entry_points
from typing import Any, Literal, TypeVar, get_type_hints

from pydantic import create_model

from cifarscale.config.recipe import Recipe, Section
from cifarscale.errors import ConfigError

PLUGINS = "cifarscale.plugins"
_MANY = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


class RegisteredTask:
    """What is known of every task here; `tasks.base.Task` says the rest."""

    name: str
    recipe: type[Recipe]

    def schema(self, code: str = "") -> type[Recipe]:
        """The class of recipes, with what a user's own code adds to it.

        Args:
            code: its digest; empty for none. Code that is not imported allows any name.
        """
        return self.recipe


SomeTask = TypeVar("SomeTask", bound=RegisteredTask)
SomeNetwork = TypeVar("SomeNetwork", bound=Callable[..., Any])
SomeDataset = TypeVar("SomeDataset", bound=Callable[..., Any])
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
    own = {name: f"cifarscale.tasks.{name}.task" for name in folders} | {"sweep": "cifarscale.sweeps.task"}
    return own | {plugin.name: plugin.value for plugin in entry_points(group=PLUGINS) if "." not in plugin.name}


def task_names() -> list[str]:
    """What a recipe's `task` may be."""
    return list(_modules())


def registered_task(name: str) -> RegisteredTask:
    """The task of a name. Raises: KeyError if there is none."""
    module = _modules()[name]
    importlib.import_module(module)
    return _REGISTERED[name]


@dataclass(frozen=True)
class DataSpec:
    """What a network is to know of the data.

    Attributes:
        image_shape: (channels, height, width).
    """

    num_classes: int
    image_shape: tuple[int, int, int] = (3, 32, 32)


@dataclass(frozen=True)
class RegisteredNetwork:
    """A network that recipes can name.

    Attributes:
        config: its section of a recipe, with `name`.
        build: makes it, with freshly drawn weights.
    """

    name: str
    config: type[Section]
    build: Callable[[Any, DataSpec], Any]


@dataclass(frozen=True)
class RegisteredDataset:
    """A data set that recipes can name.

    Attributes:
        read: the function that gives it.
        options: the names of its parameters that `shards build` has options for, and of `cache`.
        required: those of them without a default.
        file: of the function; empty for one that is in no file.
        is_built_in: whether it comes with the package.
    """

    name: str
    read: Callable[..., Any]
    options: tuple[str, ...]
    required: tuple[str, ...]
    file: str
    is_built_in: bool


_NETWORKS: dict[str, dict[str, RegisteredNetwork]] = {"": {}}
"""By the digest of the code that registers them and by name; those of the package and of plugins have no digest."""
_DATASETS: dict[str, dict[str, RegisteredDataset]] = {"": {}}
"""The same."""
_registering = ""


@contextmanager
def registering(code: str) -> Iterator[None]:
    """What is registered inside the block belongs to code of this digest."""
    global _registering
    before, _registering = _registering, code
    _NETWORKS[code], _DATASETS[code] = {}, {}
    try:
        yield
    except BaseException:
        del _NETWORKS[code], _DATASETS[code]
        raise
    finally:
        _registering = before


def register_network(name: str, config: type[Section] | None = None) -> Callable[[SomeNetwork], SomeNetwork]:
    """Registers a classifier's network under what recipes call it: `model.name = NAME`.

    What is registered is an `nn.Module` whose constructor takes its section of the recipe and a `DataSpec`, or keyword
    arguments, of which `num_classes` and `image_shape` come from the data; or a function that makes such a network.

    Args:
        config: its section of a recipe; None for the class `Config` in it, or for its keyword arguments.
    Raises: ConfigError if the name is taken, or a section cannot be made.
    """

    def register(network: SomeNetwork) -> SomeNetwork:
        networks = _NETWORKS[_registering]
        if name in networks or name in _NETWORKS[""]:
            raise ConfigError(f"network {name!r} is registered already; choose another name")
        section: Any = config or getattr(network, "Config", None)
        if section is None:
            networks[name] = RegisteredNetwork(name, *_of_keywords(name, network))
        else:
            if "name" not in section.model_fields:
                field: Any = (Literal[name], name)
                section = create_model(section.__name__, __base__=section, __module__=section.__module__, name=field)
            networks[name] = RegisteredNetwork(name, section, network)
        return network

    return register


def networks(code: str = "") -> dict[str, RegisteredNetwork]:
    """The networks that a recipe can name, by name. `code`: the digest of its own code; empty for none."""
    return _NETWORKS[""] | _NETWORKS.get(code, {})


def is_imported(code: str) -> bool:
    """Whether what a user's own code registers is known."""
    return code in _NETWORKS


_DATASET_OPTIONS = ("source", "size", "holdout", "cache")


def register_dataset(name: str) -> Callable[[SomeDataset], SomeDataset]:
    """Registers a data set under what recipes call it: `data.dataset = NAME`.

    What is registered is a function that returns an `ImageData` or yields `Sample`s. Of its parameters these are given
    to it, if it has them: `source` (a Path), `size` and `holdout`, the options of `cifarscale shards build` of these
    names; and `cache`, a folder (a Path) for what it downloads. Any other parameter needs a default.

    Raises: ConfigError if the name is taken or cannot be that of a folder, or a parameter would get no value.
    """

    def register(read: SomeDataset) -> SomeDataset:
        if not re.fullmatch(r"\w[\w.+-]*", name):
            raise ConfigError(f"data set {name!r}: a name consists of letters, digits, and _ . + - after the first")
        with suppress(KeyError):
            taken = _found_dataset(name, _registering)
            raise ConfigError(f"data set {name!r} is registered already, by {taken.file}; choose another name")
        parameters = inspect.signature(read).parameters.values()
        required = [each.name for each in parameters if each.default is each.empty and each.kind not in _MANY]
        if unknown := [each for each in required if each not in _DATASET_OPTIONS]:
            raise ConfigError(
                f"data set {name!r}: parameter {unknown[0]!r} needs a default; those without one may be "
                f"{', '.join(_DATASET_OPTIONS)}"
            )
        options = tuple(each.name for each in parameters if each.name in _DATASET_OPTIONS)
        file = getattr(getattr(inspect.unwrap(read), "__code__", None), "co_filename", "")
        is_built_in = read.__module__.startswith("cifarscale.")
        _DATASETS[_registering][name] = RegisteredDataset(name, read, options, tuple(required), file, is_built_in)
        return read

    return register


def dataset_names(code: str = "") -> list[str]:
    """The data sets that can be built by name alone. `code`: the digest of a recipe's own; empty for none."""
    _import_uncoded("cifarscale.data.sets")
    known = _DATASETS[""] | _DATASETS.get(code, {})
    plugins = [name for plugin in entry_points(group=PLUGINS) if (name := _plugged_dataset(plugin.name))]
    return sorted({name for name, dataset in known.items() if set(dataset.required) <= {"cache"}} | set(plugins))


def registered_dataset(name: str, code: str = "") -> RegisteredDataset:
    """The data set of a name; a plugin's module is imported for it. Raises: KeyError if there is none."""
    try:
        return _found_dataset(name, code)
    except KeyError:
        for plugin in entry_points(group=PLUGINS):
            if _plugged_dataset(plugin.name) == name:
                _import_uncoded(plugin.value)
        return _found_dataset(name, code)


def _found_dataset(name: str, code: str) -> RegisteredDataset:
    _import_uncoded("cifarscale.data.sets")
    return (_DATASETS[""] | _DATASETS.get(code, {}))[name]


def _plugged_dataset(plugin: str) -> str:
    """The data set that an entry point of this name stands for; empty for none."""
    kind, _, name = plugin.partition(".")
    return name if kind == "dataset" else ""


def _import_uncoded(module: str) -> None:
    """Imports a module of the package or of a plugin: what it registers is no recipe's own, whoever asks for it."""
    global _registering
    before, _registering = _registering, ""
    try:
        importlib.import_module(module)
    finally:
        _registering = before


def _of_keywords(name: str, network: Callable[..., Any]) -> tuple[type[Section], Callable[[Any, DataSpec], Any]]:
    """The section that keyword arguments make, and what builds the network from one."""
    hints = get_type_hints(network.__init__ if isinstance(network, type) else network)  # type: ignore[misc]
    fields: dict[str, Any] = {"name": (Literal[name], name)}
    of_data = []
    for parameter in inspect.signature(network).parameters.values():
        if parameter.name in ("num_classes", "image_shape"):
            of_data.append(parameter.name)
        elif parameter.kind in _MANY:
            continue
        elif parameter.default is parameter.empty or parameter.name not in hints:
            raise ConfigError(
                f"network {name!r}: parameter {parameter.name!r} needs a type and a default, to be a key of a recipe"
            )
        else:
            fields[parameter.name] = (hints[parameter.name], parameter.default)
    section = create_model(f"{name}_config", __base__=Section, **fields)

    def build(config: Section, data: DataSpec) -> Any:
        options = {key: getattr(config, key) for key in fields if key != "name"}
        return network(**options, **{key: getattr(data, key) for key in of_data})

    return section, build

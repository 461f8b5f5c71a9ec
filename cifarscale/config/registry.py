"""The tasks, networks, augmentations, metrics and data sets that recipes can name.

A task is a folder whose `task.py` registers one: those in `tasks/`, `sweeps/`, and the modules that installed packages
name as entry points of the group `cifarscale.plugins`. It is imported when a recipe names it. So is the module of a
package's data set, whose entry point is called `dataset.NAME`; those of its networks, augmentations and metrics,
`network.NAME` and so on, are when any of their kind is asked for; and a user's own code, in which tasks, too, can be
registered, for the recipes that name it.
"""

import importlib
import inspect
import logging
import pkgutil
import re
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache, partial
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Literal, TypeVar, get_args, get_type_hints

from pydantic import PydanticUserError, create_model

from cifarscale.config.recipe import Recipe, Section
from cifarscale.errors import ConfigError, in_one_line

log = logging.getLogger(__name__)

PLUGINS = "cifarscale.plugins"
UNREAD = ""
"""The name, which no recipe has, of the task that stands for those of code that is not imported."""
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
SomeFunction = TypeVar("SomeFunction", bound=Callable[..., Any])
_REGISTERED: dict[str, dict[str, RegisteredTask]] = {"": {}}
"""By the digest of the code that registers them and by name; those of the package and of plugins have no digest."""
_registering = ""


def is_built_in(thing: type | Callable[..., Any]) -> bool:
    """Whether a class or function is this package's, not a user's or another package's."""
    return thing.__module__.startswith("cifarscale.")


def register_task(name: str) -> Callable[[type[SomeTask]], type[SomeTask]]:
    """Registers a class of tasks under what recipes call it: `task = NAME`.

    Raises: ConfigError if the name is taken.
    """
    _check_called("task", name)

    def register(kind: type[SomeTask]) -> type[SomeTask]:
        tasks = _REGISTERED[_registering]
        reserved = _modules() if _registering else () if is_built_in(kind) else _own_modules()
        if name in tasks or name in _REGISTERED[""] or name in reserved:
            raise ConfigError(f"task {name!r} is registered already; choose another name")
        tasks[name] = kind()
        tasks[name].name = name
        return kind

    return register


@cache
def _own_modules() -> dict[str, str]:
    """The module that registers each task of this package, by the task's name."""
    tasks = importlib.import_module("cifarscale.tasks")
    folders = (folder.name for folder in pkgutil.iter_modules(tasks.__path__) if folder.ispkg)
    return {name: f"cifarscale.tasks.{name}.task" for name in folders} | {"sweep": "cifarscale.sweeps.task"}


@cache
def _plugin_tasks() -> dict[str, EntryPoint]:
    """The entry points of packages' tasks, by the task's name; none that has the name of one of this package."""
    plugins = {}
    for plugin in entry_points(group=PLUGINS):
        if plugin.name in _own_modules():
            log.warning("the plugin %s is left out: a task of this package has that name", _shown(plugin))
        elif "." not in plugin.name:
            plugins[plugin.name] = plugin
    return plugins


@cache
def _modules() -> dict[str, str]:
    """The module that registers each task of this package and of plugins, by the task's name."""
    return _own_modules() | {name: plugin.value for name, plugin in _plugin_tasks().items()}


def task_names(code: str = "") -> list[str]:
    """What a recipe's `task` may be. `code`: the digest of its own code; empty for none."""
    return [*_modules(), *(_REGISTERED.get(code, {}) if code else ())]


def registered_tasks(code: str = "") -> dict[str, RegisteredTask]:
    """All of them by name, but for plugins' that cannot be imported, of which a warning tells."""
    tasks = {}
    for name in task_names(code):
        try:
            tasks[name] = registered_task(name, code)
        except ConfigError as error:
            if name not in _plugin_tasks():
                raise
            _warn(str(error))
    return tasks


def registered_task(name: str, code: str = "") -> RegisteredTask:
    """The task of a name; of code that is not imported, one that stands for whatever it may register.

    Raises: KeyError if there is none; ConfigError if it is a plugin's that cannot be imported.
    """
    if name in _plugin_tasks():
        _import_plugin(plugin := _plugin_tasks()[name])
        if name not in _REGISTERED[""]:
            raise ConfigError(f"the plugin {_shown(plugin)} registers no task {name!r}. {_LEAVE_IT}")
        return _REGISTERED[""][name]
    if name in _own_modules() or not code:
        _import_uncoded(_own_modules()[name])
        return _REGISTERED[""][name]
    if not is_imported(code):
        _import_uncoded("cifarscale.tasks.unread")
        return _REGISTERED[""][UNREAD]
    return _REGISTERED[code][name]


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
        code: digest of the user's code that registers it; empty for none.
    """

    name: str
    config: type[Section]
    build: Callable[[Any, DataSpec], Any]
    code: str = ""


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


@dataclass(frozen=True)
class RegisteredAugmentation:
    """An augmentation that recipes can name.

    Attributes:
        config: its section of a recipe.
        build: makes of that what takes images and their `Draws` to images.
        code: as of a network.
    """

    name: str
    config: type[Section]
    build: Callable[[Any], Callable[[Any, Any], Any]]
    code: str = ""


@dataclass(frozen=True)
class RegisteredMetric:
    """A metric of evaluations that recipes can name.

    Attributes:
        direction: whether more of it is better, `max`, or less, `min`.
        of_samples: from logits (b, C) and labels (b,) to a value, or a row of values, of each sample.
        reduce: from the values of all samples to the metric; None for their mean.
        code: as of a network.
    """

    name: str
    direction: Literal["max", "min"]
    of_samples: Callable[[Any, Any], Any]
    reduce: Callable[[Any], Any] | None
    code: str = ""


Part = TypeVar("Part", RegisteredNetwork, RegisteredAugmentation, RegisteredMetric)
_NETWORKS: dict[str, dict[str, RegisteredNetwork]] = {"": {}}
"""The same, as of those that follow."""
_AUGMENTATIONS: dict[str, dict[str, RegisteredAugmentation]] = {"": {}}
_METRICS: dict[str, dict[str, RegisteredMetric]] = {"": {}}
_DATASETS: dict[str, dict[str, RegisteredDataset]] = {"": {}}


@contextmanager
def registering(code: str) -> Iterator[None]:
    """What is registered inside the block belongs to code of this digest."""
    global _registering
    for module in _own_modules().values():  # or what they register would count as this code's, which may import them
        importlib.import_module(module)
    before, _registering = _registering, code
    tables: tuple[dict[str, Any], ...] = (_REGISTERED, _NETWORKS, _AUGMENTATIONS, _METRICS, _DATASETS)
    for table in tables:
        table[code] = {}
    try:
        yield
    except BaseException:
        for table in tables:
            del table[code]
        raise
    finally:
        _registering = before


def _add(kind: str, table: dict[str, dict[str, Part]], part: Part) -> None:
    if part.name in table[_registering] or part.name in table[""]:
        raise ConfigError(f"{kind} {part.name!r} is registered already; choose another name")
    table[_registering][part.name] = part


def _check_called(kind: str, name: object) -> None:
    """Raises: ConfigError for a decorator that stands without its parentheses, and so gets what it decorates."""
    if not isinstance(name, str):
        function = f"register_{kind.replace(' ', '')}"
        raise ConfigError(f'{function} got {name!r} where a name belongs: write @cs.{function}("NAME") above it')


def _check_key(kind: str, name: str) -> None:
    """Raises: ConfigError for a name that cannot be a key of a recipe, or of a log."""
    _check_called(kind, name)
    if not name.isidentifier():
        raise ConfigError(f"{kind} {name!r}: take letters, digits and _ for its name, and a letter in front")


def register_network(name: str, config: type[Section] | None = None) -> Callable[[SomeFunction], SomeFunction]:
    """Registers a classifier's network under what recipes call it: `model.name = NAME`.

    What is registered is an `nn.Module` whose constructor takes its section of the recipe and a `DataSpec`, or keyword
    arguments, of which `num_classes` and `image_shape` come from the data; or a function that makes such a network.

    Args:
        config: its section of a recipe; None for the class `Config` in it, or for its keyword arguments.
    Raises: ConfigError if the name is taken, or a section cannot be made.
    """
    _check_called("network", name)

    def register(network: SomeFunction) -> SomeFunction:
        section: Any = config or getattr(network, "Config", None)
        build: Callable[[Any, DataSpec], Any] = network
        if section is None:
            section, of_data = _of_keywords("network", name, network, ("num_classes", "image_shape"))

            def build(config: Section, data: DataSpec) -> Any:
                return network(**_options(config), **{key: getattr(data, key) for key in of_data})

        else:
            _check_section("network", name, section)

        if "name" not in section.model_fields:
            field: Any = (Literal[name], name)
            section = create_model(section.__name__, __base__=section, __module__=section.__module__, name=field)
        elif name not in get_args(section.model_fields["name"].annotation):
            raise ConfigError(
                f"network {name!r}: the key 'name' of its Config is what recipes call it: leave it out, or write "
                f"name: Literal[{name!r}] = {name!r}"
            )
        _add("network", _NETWORKS, RegisteredNetwork(name, section, build, _registering))
        return network

    return register


def register_augmentation(name: str) -> Callable[[SomeFunction], SomeFunction]:
    """Registers an augmentation under what recipes call it: the section `[augmentation.own.NAME]`.

    What is registered is a function from images (N, 3, H, W), floats from 0 to 1, to images of that shape, whose other
    keyword arguments are the keys of the section. If it has an argument `draws`, it gets `cs.randomness.Draws` of the N
    images. A class is called with its section if there is a class `Config` in it, else with keyword arguments; its
    instances are then such functions.

    Raises: ConfigError if the name is taken, or a section cannot be made.
    """
    _check_key("augmentation", name)

    def register(augmentation: SomeFunction) -> SomeFunction:
        section: Any = getattr(augmentation, "Config", None)
        if section is not None:
            _check_section("augmentation", name, section)
            build: Callable[[Any], Callable[..., Any]] = augmentation
        elif isinstance(augmentation, type):
            section, _ = _of_keywords("augmentation", name, augmentation)

            def build(config: Section) -> Callable[..., Any]:
                made: Callable[..., Any] = augmentation(**_options(config))
                return made
        else:
            section, _ = _of_keywords("augmentation", name, augmentation, ("images", "draws"))

            def build(config: Section) -> Callable[..., Any]:
                return partial(augmentation, **_options(config))

        made = RegisteredAugmentation(name, section, lambda config: _drawing(build(config)), _registering)
        _add("augmentation", _AUGMENTATIONS, made)
        return augmentation

    return register


def register_metric(
    name: str, *, direction: Literal["max", "min"], reduce: Callable[[Any], Any] | None = None
) -> Callable[[SomeFunction], SomeFunction]:
    """Registers a metric of a classifier's evaluations under what recipes call it: `evaluation.metrics = [NAME]`.

    What is registered is a function from logits (b, C) float32 and labels (b,) int64 to a value of each sample, (b,),
    or to several, (b, k). A sample's values must not depend on the others'.

    Args:
        direction: whether more of it is better, `max`, or less, `min`.
        reduce: from the values of all n samples, (n,) or (n, k) float64 on the CPU in the order of the split, to the
            metric; None for their mean. With it a metric need not be a mean.
    Raises: ConfigError if the name is taken, or there is no such direction.
    """
    _check_key("metric", name)
    if direction not in ("max", "min"):
        raise ConfigError(
            f"metric {name!r}: direction = {direction!r}; valid are 'max', where more of it is better, 'min'"
        )

    def register(metric: SomeFunction) -> SomeFunction:
        _add("metric", _METRICS, RegisteredMetric(name, direction, metric, reduce, _registering))
        return metric

    return register


def networks(code: str = "") -> dict[str, RegisteredNetwork]:
    """The networks that a recipe can name, by name. `code`: the digest of its own code; empty for none."""
    _import_plugins("network")
    return _NETWORKS[""] | _NETWORKS.get(code, {})


def augmentations(code: str = "") -> dict[str, RegisteredAugmentation]:
    """The augmentations that a recipe can name, by name."""
    _import_plugins("augmentation")
    return _AUGMENTATIONS[""] | _AUGMENTATIONS.get(code, {})


def metrics(code: str = "") -> dict[str, RegisteredMetric]:
    """The metrics that a recipe can name beside those of every evaluation, by name."""
    _import_plugins("metric")
    return _METRICS[""] | _METRICS.get(code, {})


def is_imported(code: str) -> bool:
    """Whether what a user's own code registers is known."""
    return code in _NETWORKS


_DATASET_OPTIONS = ("source", "size", "holdout", "cache")


def register_dataset(name: str) -> Callable[[SomeFunction], SomeFunction]:
    """Registers a data set under what recipes call it: `data.dataset = NAME`.

    What is registered is a function that returns an `ImageData` or yields `Sample`s. Of its parameters these are given
    to it, if it has them: `source` (a Path), `size` and `holdout`, the options of `cifarscale shards build` of these
    names; and `cache`, a folder (a Path) for what it downloads. Any other parameter needs a default.

    Raises: ConfigError if the name is taken or cannot be that of a folder, or a parameter would get no value.
    """

    _check_called("data set", name)

    def register(read: SomeFunction) -> SomeFunction:
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
        _DATASETS[_registering][name] = RegisteredDataset(name, read, options, tuple(required), file, is_built_in(read))
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
                _import_plugin(plugin)
        return _found_dataset(name, code)


def _found_dataset(name: str, code: str) -> RegisteredDataset:
    _import_uncoded("cifarscale.data.sets")
    return (_DATASETS[""] | _DATASETS.get(code, {}))[name]


def _plugged_dataset(plugin: str) -> str:
    """The data set that an entry point of this name stands for; empty for none."""
    kind, _, name = plugin.partition(".")
    return name if kind == "dataset" else ""


@cache
def _import_plugins(kind: str) -> None:
    """Imports what installed packages offer of a kind, once; one that fails is left out, and everything else works."""
    for plugin in entry_points(group=PLUGINS):
        if plugin.name.startswith(f"{kind}."):
            try:
                _import_plugin(plugin)
            except ConfigError as error:
                _warn(str(error))


def _import_plugin(plugin: EntryPoint) -> None:
    """Imports the module of a plugin, after those of this package, whose names it cannot take then.

    Raises: ConfigError, whatever is wrong with it.
    """
    for module in (*_own_modules().values(), "cifarscale.data.sets"):
        _import_uncoded(module)
    try:
        _import_uncoded(plugin.value)
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        said = in_one_line(error)
        raise ConfigError(f"the plugin {_shown(plugin)} cannot be imported: {said}. {_LEAVE_IT}") from error


_LEAVE_IT = "All else works without it: update or uninstall its package"


def _shown(plugin: EntryPoint) -> str:
    package = f" of the package {plugin.dist.name}" if plugin.dist else ""
    return f"{plugin.name} = {plugin.value}{package}"


@cache
def _warn(message: str) -> None:
    """Says it once."""
    log.warning("%s", message)


def _import_uncoded(module: str) -> None:
    """Imports a module of the package or of a plugin: what it registers is no recipe's own, whoever asks for it."""
    global _registering
    before, _registering = _registering, ""
    try:
        importlib.import_module(module)
    finally:
        _registering = before


def _of_keywords(
    kind: str, name: str, function: Callable[..., Any], given: Collection[str] = ()
) -> tuple[type[Section], list[str]]:
    """The section that the keyword arguments of a function or class make.

    Args:
        given: arguments that are no keys.
    Returns: the section, and the `given` arguments that there are.
    """
    hints = get_type_hints(function.__init__ if isinstance(function, type) else function)  # type: ignore[misc]
    parameters = inspect.signature(function).parameters
    fields: dict[str, Any] = {}
    for parameter in parameters.values():
        if parameter.name in given or parameter.kind in _MANY:
            continue
        if parameter.default is parameter.empty or parameter.name not in hints:
            raise ConfigError(
                f"{kind} {name!r}: parameter {parameter.name!r} needs a type and a default, to be a key of a recipe"
            )
        fields[parameter.name] = (hints[parameter.name], parameter.default)
        _check_type(kind, name, parameter.name, fields[parameter.name])
    return create_model(f"{name}_config", __base__=Section, **fields), [key for key in given if key in parameters]


def _check_type(kind: str, name: str, key: str, field: Any) -> None:
    """Raises: ConfigError for a field whose type no value of a recipe can have."""
    try:
        create_model(key, __base__=Section, **{key: field})
    except (PydanticUserError, NameError, TypeError) as error:
        shown = getattr(field[0], "__name__", field[0])
        raise ConfigError(
            f"{kind} {name!r}: parameter {key!r} is of type {shown}, which no key of a recipe can be; valid are bool, "
            "int, float, str, and lists of them"
        ) from error


def _check_section(kind: str, name: str, section: Any) -> None:
    """Raises: ConfigError for a class that is no section of a recipe."""
    if not (isinstance(section, type) and issubclass(section, Section)):
        raise ConfigError(f"{kind} {name!r}: its Config is no section of a recipe: write class Config(cs.Section)")
    try:
        section.model_rebuild()
    except (PydanticUserError, NameError) as error:
        raise ConfigError(f"{kind} {name!r}: its Config: {in_one_line(error)}") from error


def _options(config: Section) -> dict[str, Any]:
    """A section of keyword arguments as such."""
    return {key: getattr(config, key) for key in type(config).model_fields if key != "name"}


def _drawing(augment: Callable[..., Any]) -> Callable[[Any, Any], Any]:
    """With draws as its second argument, also where it wants none."""
    if "draws" in inspect.signature(getattr(augment, "forward", augment)).parameters:
        return lambda images, draws: augment(images, draws=draws)
    return lambda images, draws: augment(images)

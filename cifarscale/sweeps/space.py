"""Points of a search space, and the recipes that they make of a sweep's base."""

import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from cifarscale.config.keys import set_key
from cifarscale.config.load import find_recipe, load_training_recipe, parse_recipe, recipe_hash, with_values
from cifarscale.config.recipe import TrainingRecipe, resolved
from cifarscale.config.validation import nearest
from cifarscale.errors import ConfigError
from cifarscale.sweeps.recipe import AshaConfig, Distribution, PbtConfig, SweepRecipe, in_order

Overrides = dict[str, Any]
"""Values by the dotted keys of a recipe."""
_CHECKED_CORNERS = 256
"""Most combinations of a space's ends that are tried before a sweep starts."""
_DRAWS_OF_THE_SAME = 1000
"""After so many draws in a row of what was drawn before, a space has nothing else."""
_NOT_TRAINED_ON = ("data.fingerprint", "data.num_validation", "data.dataset", "evaluation.every", "task", "name")
"""Keys that trials must share to be compared."""


def value_at(distribution: Distribution, uniform: float) -> Any:
    """The value of a distribution at a number in [0, 1): its quantile."""
    kind, bounds = distribution.kind, getattr(distribution, distribution.kind)
    if kind == "uniform":
        return bounds[0] + (bounds[1] - bounds[0]) * uniform
    if kind == "loguniform":
        return math.exp(math.log(bounds[0]) + (math.log(bounds[1]) - math.log(bounds[0])) * uniform)
    values = values_of(distribution)
    return values[int(uniform * len(values))]


def values_of(distribution: Distribution) -> list[Any]:
    """All values of `choice`, `quniform` or `randint`, in order."""
    kind, bounds = distribution.kind, getattr(distribution, distribution.kind)
    if kind == "choice":
        return list(bounds)
    if kind == "randint":
        return list(range(*bounds))
    low, high, step = bounds
    multiples = range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)
    whole = all(float(bound).is_integer() for bound in bounds)
    return [int(k * step) if whole else round(k * step, 12) for k in multiples]


def sample(space: Mapping[str, Distribution], seed: int, draw: int, base: TrainingRecipe) -> Overrides:
    """The values of a draw of random search: a function of the space, the seed and the draw's number alone.

    Each key has numbers of its own, so that one more key changes nothing for the others.
    """
    from cifarscale.distributed.randomness import batch_generator

    def drawn(key: str) -> float:
        return float(batch_generator(seed, f"sweep {key}", draw).random())

    return assigned(space, base, lambda key: value_at(space[key], drawn(key)))


def samples(space: Mapping[str, Distribution], seed: int, base: TrainingRecipe) -> Iterator[Overrides]:
    """The values of one trial of random search after the other, no two the same; ends when the space has no more."""
    drawn: list[Overrides] = []
    found = 0
    for draw in itertools.count():
        overrides = sample(space, seed, draw, base)
        if overrides not in drawn:
            drawn.append(overrides)
            found = draw
            yield overrides
        elif draw - found == _DRAWS_OF_THE_SAME:
            return


def grid(space: Mapping[str, Distribution], base: TrainingRecipe) -> list[Overrides]:
    """All combinations, the last key changing fastest; those that conditions make equal stand once."""
    combinations: list[Overrides] = []
    for point in itertools.product(*(values_of(distribution) for distribution in space.values())):
        at = dict(zip(space, point, strict=True))
        overrides = assigned(space, base, at.__getitem__)
        if overrides not in combinations:
            combinations.append(overrides)
    return combinations


def base_of(sweep: SweepRecipe) -> TrainingRecipe:
    """The recipe that is varied, with the sweep's `set` applied. Raises: ConfigError."""
    return changed(load_training_recipe(str(find_recipe(sweep.base))), sweep.set, "set")


def changed(base: TrainingRecipe, overrides: Mapping[str, Any], where: str) -> TrainingRecipe:
    """The recipe with dotted keys replaced, checked.

    A section that gets another `name` starts from that one's defaults: `optimizer.name` = "sgd" leaves Adam's betas.

    Raises: ConfigError, which begins with `where`.
    """
    values = resolved(base)
    for key in sorted(overrides, key=lambda key: not key.endswith(".name")):
        section, _, last = key.rpartition(".")
        if last == "name" and section in ("optimizer", "model") and values[section]["name"] != overrides[key]:
            values[section] = {}
        try:
            set_key(values, key, overrides[key])
        except ValueError as error:
            raise ConfigError(f"{where}: {key}: {error}") from error
    job = parse_recipe(values, where)
    assert isinstance(job, TrainingRecipe)
    return job


def trial_recipe(sweep: SweepRecipe, base: TrainingRecipe, overrides: Overrides) -> TrainingRecipe:
    """What a trial runs. Raises: ConfigError."""
    return with_values(changed(base, overrides, "space"), name=sweep.name)


def best_recipe(sweep: SweepRecipe, base: TrainingRecipe, overrides: Overrides) -> TrainingRecipe:
    """The recipe to train in the end: on all samples, and looking at the test set once, when it is done."""
    recipe = with_values(changed(base, overrides, "space"), name=f"{sweep.name}-best", data__num_validation=0)
    if recipe.needs_validation:
        recipe = with_values(recipe, evaluation__every=0)
    return recipe


def sweep_hash(sweep: SweepRecipe) -> str:
    """Eight hexadecimal digits of what the sweep searches, whatever its size and wherever it runs."""
    places = ("max_concurrent", "workers_per_trial", "cpus_per_trial", "gpus_per_trial")
    free = [*places, "retries", "time_budget_min"]
    if not isinstance(sweep.scheduler, PbtConfig):  # the size of a population decides what becomes of it
        free.append("num_trials")
    changes: dict[str, Any] = {key: SweepRecipe.model_fields[key].default for key in free}
    changes["set"] = {key: value for key, value in sweep.set.items() if not key.startswith("tracking.")}
    return recipe_hash(sweep.model_copy(update=changes))


def check_sweep(sweep: SweepRecipe) -> TrainingRecipe:
    """Everything that can be known before a trial starts. Returns: the base.

    Raises: ConfigError naming the key, the value, and what is valid.
    """
    base = base_of(sweep)
    for key in sweep.space:
        if key in _NOT_TRAINED_ON or key.startswith("tracking."):
            raise ConfigError(f"space.{key}: trials that differ in {key} cannot be compared; put it into [set]")
    if base.needs_validation and not base.data.num_validation:
        raise ConfigError(
            "data.num_validation = 0 leaves nothing to select by but the test set, which a sweep never looks at. "
            'Add to [set]: "data.num_validation" = 5000, or a tenth of a smaller set'
        )
    _check_metric(sweep, base)
    _check_conditions(sweep, base)
    for overrides in corners(sweep.space, base):
        trial_recipe(sweep, base, overrides)
    return base


def corners(space: Mapping[str, Distribution], base: TrainingRecipe) -> Iterator[Overrides]:
    """The space's ends: each value and bound of each key by itself, then their combinations, up to a number."""
    ends = {key: _ends(distribution) for key, distribution in space.items()}
    first = {key: values[0] for key, values in ends.items()}
    for key, values in ends.items():
        for value in values:
            yield assigned(space, base, {**first, key: value}.__getitem__)
    for point in itertools.islice(itertools.product(*ends.values()), _CHECKED_CORNERS):
        yield assigned(space, base, dict(zip(ends, point, strict=True)).__getitem__)


def _ends(distribution: Distribution) -> list[Any]:
    if distribution.kind in ("uniform", "loguniform"):
        return list(getattr(distribution, distribution.kind))
    values = values_of(distribution)
    return values if distribution.kind == "choice" else [values[0], values[-1]]


def assigned(space: Mapping[str, Distribution], base: TrainingRecipe, value: Callable[[str], Any]) -> Overrides:
    """The values of the keys whose conditions hold, in the order of the space.

    Args:
        value: gives that of a key; asked only for those whose conditions hold, after the keys that these name.
    """
    values: Overrides = {}
    for key in in_order(space):
        conditions = space[key].when
        if all(_current(other, values, space, base) == wanted for other, wanted in conditions.items()):
            values[key] = value(key)
    return {key: values[key] for key in space if key in values}


def _current(key: str, values: Overrides, space: Mapping[str, Distribution], base: TrainingRecipe) -> Any:
    return values[key] if key in values else lookup(resolved(base), key)


def lookup(values: Any, key: str) -> Any:
    """The value at a dotted key of nested tables, None where there is none."""
    for part in key.split("."):
        values = values.get(part) if isinstance(values, Mapping) else None
    return values


def _check_conditions(sweep: SweepRecipe, base: TrainingRecipe) -> None:
    for key, distribution in sweep.space.items():
        for other, wanted in distribution.when.items():
            where = f"space.{key}: when {other} = {wanted!r}"
            if other not in sweep.space:
                current = lookup(resolved(base), other)
                if current != wanted:
                    raise ConfigError(
                        f"{where} never holds: {other} is not in the space, and is {current!r} in the base"
                    )
            elif sweep.space[other].kind == "choice" and wanted not in sweep.space[other].choice:
                raise ConfigError(f"{where} never holds: {other} is one of {sweep.space[other].choice}")


def _check_metric(sweep: SweepRecipe, base: TrainingRecipe) -> None:
    metrics = {metric.name: metric for metric in base.metrics}
    evaluated = [name for name, metric in metrics.items() if not metric.is_final]
    if sweep.metric not in metrics:
        valid = ", ".join(metrics) or "none with distance.features = 'none'; set distance.features and distance.every"
        raise ConfigError(
            f"metric = {sweep.metric!r} is not what a job of task {base.task!r} reports"
            f"{nearest(sweep.metric, metrics)}; valid: {valid}"
        )
    better = metrics[sweep.metric].mode
    if sweep.mode != better:
        raise ConfigError(f"mode = {sweep.mode!r}: of {sweep.metric} {better!r} is better")
    if sweep.scheduler.name != "none":
        if sweep.metric not in evaluated or not base.evaluation.every:
            raise ConfigError(
                f"scheduler.name = {sweep.scheduler.name!r} compares trials while they run, and "
                f"metric = {sweep.metric!r} is not reported then; valid: "
                f"{', '.join(evaluated) or 'none'}, with evaluation.every above 0"
            )
        if isinstance(sweep.scheduler, AshaConfig) and sweep.scheduler.grace_steps >= base.training.max_steps:
            raise ConfigError(
                f"scheduler.grace_steps = {sweep.scheduler.grace_steps} must be below training.max_steps = "
                f"{base.training.max_steps} of the base, or no trial is ever stopped"
            )

"""What population-based training may search, and how a member's values come out of another's."""

import math
from collections.abc import Mapping
from typing import Any

from cifarscale.config.recipe import MAY_CHANGE, TrainingRecipe, may_change, resolved
from cifarscale.errors import ConfigError
from cifarscale.sweeps.recipe import Distribution, PbtConfig, SweepRecipe
from cifarscale.sweeps.space import Overrides, assigned, lookup, value_at, values_of

FACTORS = (0.8, 1.2)
"""What a number is multiplied by, as in the paper."""
_MEMBERS = 2**20
"""More than a population has: the draws of each generation have places of their own."""


def check_population(sweep: SweepRecipe, base: TrainingRecipe) -> None:
    """Raises: ConfigError naming what population-based training cannot do."""
    assert isinstance(sweep.scheduler, PbtConfig)
    plain = resolved(base)
    for key, distribution in sweep.space.items():
        if distribution.when and lookup(plain, key) is None:
            raise ConfigError(
                f"space.{key}: with scheduler.name = 'pbt' a member gets the base's value back when "
                f"{_when(distribution)} holds no longer, and the base leaves it unset: take a base that sets it"
            )
        if not key.startswith(MAY_CHANGE):
            raise ConfigError(
                f"space.{key}: scheduler.name = 'pbt' changes keys in the middle of a run, and {key} cannot change "
                f"then; valid are {may_change()}"
            )
    if sweep.searcher.name != "random":
        raise ConfigError(f"searcher.name = {sweep.searcher.name!r} has no effect with scheduler.name = 'pbt'")
    if sweep.num_trials < 2:
        raise ConfigError(f"num_trials = {sweep.num_trials}: a population, for scheduler.name = 'pbt', has at least 2")
    interval, last = sweep.scheduler.interval_steps, base.training.max_steps
    every = base.compared_every
    if interval % every or interval >= last:
        raise ConfigError(
            f"scheduler.interval_steps = {interval} must be a multiple of the {every} steps between two evaluations, "
            f"and below training.max_steps = {last}"
        )


def _when(distribution: Distribution) -> str:
    return " and ".join(f"{key} = {value!r}" for key, value in distribution.when.items())


def num_replaced(members: int, scheduler: PbtConfig) -> int:
    """How many of a population are replaced at a time."""
    return min(math.ceil(members * scheduler.quantile), members // 2)


def chosen(sweep: SweepRecipe, generation: int, member: int, size: int) -> int:
    """Which of `size` others a member goes on from."""
    return int(_draws(sweep, "pbt", generation, member)[0] * size)


def explored(
    sweep: SweepRecipe, base: TrainingRecipe, values: Mapping[str, Any], generation: int, member: int
) -> Overrides:
    """The values of a member that goes on from one with `values`: a function of these, the seed and numbers alone."""
    assert isinstance(sweep.scheduler, PbtConfig)
    resample = sweep.scheduler.resample_probability

    def value(key: str) -> Any:
        whether, where = _draws(sweep, f"pbt {key}", generation, member)
        distribution = sweep.space[key]
        is_new = key not in values or whether < resample
        return value_at(distribution, where) if is_new else perturbed(distribution, values[key], where)

    return assigned(sweep.space, base, value)


def difference(base: TrainingRecipe, before: Overrides, after: Overrides) -> Overrides:
    """What changes between two trials' values; a key whose condition holds no longer gets the base's back."""
    plain = resolved(base)
    changes = {key: after[key] if key in after else lookup(plain, key) for key in {**before, **after}}
    return {key: value for key, value in changes.items() if key not in before or before[key] != value}


def perturbed(distribution: Distribution, value: Any, uniform: float) -> Any:
    """A value nearby: a neighbour in a list, or a number that is a fifth larger or smaller, within the bounds."""
    up = uniform >= 0.5
    if distribution.kind in ("uniform", "loguniform"):
        low, high = getattr(distribution, distribution.kind)
        return min(max(value * FACTORS[up], low), high)
    values = values_of(distribution)
    place = values.index(value)
    neighbours = [other for other in (place - 1, place + 1) if 0 <= other < len(values)]
    return values[neighbours[up and len(neighbours) > 1]] if neighbours else value


def _draws(sweep: SweepRecipe, purpose: str, generation: int, member: int) -> tuple[float, float]:
    from cifarscale.distributed.randomness import batch_generator

    first, second = batch_generator(sweep.seed, purpose, generation * _MEMBERS + member).random(2)
    return float(first), float(second)

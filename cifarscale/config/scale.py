"""`--scale K`: a recipe for batches that are K times as large, which feed K times as many ranks."""

import math
from collections.abc import Mapping
from typing import Any

from cifarscale.config.keys import dotted
from cifarscale.config.load import with_overrides
from cifarscale.config.ranks import batch_size_per_rank, most_fed, numbers_of_ranks
from cifarscale.config.recipe import MOST_MICROBATCHES, TrainingRecipe, fewer_steps, resolved
from cifarscale.errors import ConfigError, TooManyRanksError, typed

WARMUP_SHARE = 1 / 18
"""Of a run whose rate would start at its peak: 5 of 90 epochs (Goyal et al. 2017, section 2.2)."""
LARGEST_FACTOR = 1024


def scaled(recipe: TrainingRecipe, factor: int) -> TrainingRecipe:
    """The recipe with batches that are `factor` times as large, and as many images.

    - The learning rate grows by `factor` with SGD (Goyal et al. 2017, arXiv 1706.02677, section 2.1), and by its root
      with optimizers whose updates have a size of their own: AdamW (Malladi et al. 2022, arXiv 2205.10287; betas
      and epsilon are left) and Muon, which is scaled to AdamW's updates.
    - A rate that would start at its peak gets a warm-up.
    - The decay of averaged weights is raised to the power of `factor` (Busbridge et al. 2023, arXiv 2307.13813).
    - Microbatches grow in number up to 64, then in size.

    Raises: ConfigError if there is no such recipe.
    """
    if factor < 1:
        raise ConfigError(f"--scale {factor} is not valid; it takes a whole number from 1 on")
    if factor == 1:
        return recipe
    try:
        larger = with_overrides(recipe, _changes(recipe, factor))
    except ConfigError as error:
        raise ConfigError(f"--scale {factor}: {error}") from error
    assert isinstance(larger, TrainingRecipe)
    return larger


def differences(before: TrainingRecipe, after: TrainingRecipe) -> list[str]:
    """The keys in which two recipes of a task differ, each with its values: `KEY BEFORE -> AFTER`."""
    old, new = (dict(dotted(resolved(recipe))) for recipe in (before, after))
    return [f"{key} {old.get(key)} -> {value}" for key, value in new.items() if old.get(key) != value]


def factor_for(recipe: TrainingRecipe, world_size: int) -> int | None:
    """The least power of two by which the recipe is scaled to feed so many ranks; None if none does."""
    factor = 2
    while factor <= LARGEST_FACTOR:
        try:
            if world_size in numbers_of_ranks(scaled(recipe, factor)):
                return factor
        except ConfigError:
            return None
        factor *= 2
    return None


def check_ranks(recipe: TrainingRecipe, nproc: int, name: str) -> None:
    """Raises: ConfigError unless so many ranks can share the recipe's batch, with what can be run in its place."""
    try:
        batch_size_per_rank(recipe, nproc)
    except TooManyRanksError as error:
        larger = ""
        if factor := factor_for(recipe, nproc):
            show = f"cifarscale jobs show {typed(name)} --scale {factor}"
            larger = f", or with --scale {factor}, which makes it another recipe: {show}"
        raise ConfigError(
            f"{most_fed(recipe)}, and --nproc is {nproc}. Run with --nproc {numbers_of_ranks(recipe)[-1]}{larger}"
        ) from error


def _changes(recipe: TrainingRecipe, factor: int) -> dict[str, Any]:
    training, schedule = recipe.training, recipe.schedule
    batch, steps = training.global_batch_size * factor, recipe.scaled_steps(factor)
    growth = factor if recipe.optimizer.name == "sgd" else math.sqrt(factor)
    changes: dict[str, Any] = {
        **_with_rates(dict(dotted(resolved(recipe))), factor, growth),
        "training.global_batch_size": batch,
        "training.microbatches": _microbatches(training.microbatches, batch, recipe.samples_together, factor),
        **steps,
    }
    if not steps["schedule.warmup_steps"] and schedule.name != "one_cycle":  # which rises by itself
        changes["schedule.warmup_steps"] = round(WARMUP_SHARE * steps["training.max_steps"])
    if recipe.later:
        changes["later"] = [
            {"step": fewer_steps(change.step, factor), "set": change.set | _with_rates(change.set, factor, growth)}
            for change in recipe.later
        ]
    return changes


def _with_rates(values: Mapping[str, Any], factor: int, growth: float) -> dict[str, Any]:
    """Those of the dotted keys that depend on the length of a step, as they become."""
    changes: dict[str, Any] = {}
    for key, value in values.items():
        if key.endswith(".learning_rate"):
            changes[key] = _rounded(value * growth)
        elif key == "training.ema_decay":
            changes[key] = _rounded(value**factor)
        elif key == "training.ema_statistics":
            changes[key] = fewer_steps(value, factor)
    return changes


def _microbatches(before: int, batch: int, together: int, factor: int) -> int:
    """As many times more, as far as there may be so many; 0 stays 0."""
    if not before:
        return 0
    most = max(before, min(MOST_MICROBATCHES, before * factor))
    numbers = [1 << n for n in range(most.bit_length())]
    return max(number for number in numbers if number <= most and batch % (number * together) == 0)


def _rounded(value: float) -> float:
    """To six digits, as people would write it."""
    return float(f"{value:.6g}")

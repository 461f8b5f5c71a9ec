"""Recipes as scripts name them: by a name, by a file, or as what another call has given."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cifarscale.config.load import Changes, load_recipe, require_training, with_overrides
from cifarscale.config.recipe import Recipe
from cifarscale.config.scale import differences, scaled
from cifarscale.runs.run_folder import folder_of

log = logging.getLogger(__name__)


def recipe_of(
    recipe: str | Path | Recipe,
    changes: Changes | None = None,
    scale: int = 1,
    tell: bool = True,
    **shorthand: Any,
) -> Recipe:
    """The checked recipe with changed keys.

    Args:
        scale: how many times as large its batches then become, with all that depends on that; see `config.scale`.
        tell: whether it is logged what that is.
        shorthand: further keys; None leaves one as it is.
    Raises: ConfigError naming the key, the value, and what is valid.
    """
    if isinstance(changes, str):
        changes = [changes]
    changed = list(changes.items() if isinstance(changes, Mapping) else changes or ())
    changed += [(key, value) for key, value in shorthand.items() if value is not None]
    if isinstance(recipe, Recipe):
        loaded = with_overrides(recipe, changed) if changed else recipe
    else:
        loaded = load_recipe(str(recipe), changed)
    if scale == 1:
        return loaded
    before = require_training(loaded, name_of(recipe))
    after = scaled(before, scale)
    if tell:
        log.info("--scale %d: %s", scale, "; ".join(differences(before, after)))
    return after


def name_of(recipe: str | Path | Recipe) -> str:
    """What stands in front of an error."""
    return recipe.name if isinstance(recipe, Recipe) else str(recipe)


def folder_for(recipe: str | Path | Recipe, loaded: Recipe, run_dir: str | Path | None) -> Path | None:
    """Where its run goes: what is named, else the folder whose own recipe.toml it is; None for `runs/NAME-HASH`."""
    if run_dir:
        return Path(run_dir)
    return None if isinstance(recipe, Recipe) else folder_of(str(recipe), loaded)

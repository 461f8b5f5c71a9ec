"""Recipes as scripts name them: by a name, by a file, or as what another call has given."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cifarscale.config.load import Changes, load_recipe, with_overrides
from cifarscale.config.recipe import Recipe
from cifarscale.runs.run_folder import folder_of


def recipe_of(recipe: str | Path | Recipe, changes: Changes | None = None, **shorthand: Any) -> Recipe:
    """The checked recipe with changed keys.

    Args:
        shorthand: further keys; None leaves one as it is.
    Raises: ConfigError naming the key, the value, and what is valid.
    """
    if isinstance(changes, str):
        changes = [changes]
    changed = list(changes.items() if isinstance(changes, Mapping) else changes or ())
    changed += [(key, value) for key, value in shorthand.items() if value is not None]
    if isinstance(recipe, Recipe):
        return with_overrides(recipe, changed) if changed else recipe
    return load_recipe(str(recipe), changed)


def name_of(recipe: str | Path | Recipe) -> str:
    """What stands in front of an error."""
    return recipe.name if isinstance(recipe, Recipe) else str(recipe)


def folder_for(recipe: str | Path | Recipe, loaded: Recipe, run_dir: str | Path | None) -> Path | None:
    """Where its run goes: what is named, else the folder whose own recipe.toml it is; None for `runs/NAME-HASH`."""
    if run_dir:
        return Path(run_dir)
    return None if isinstance(recipe, Recipe) else folder_of(str(recipe), loaded)

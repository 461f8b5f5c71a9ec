"""Where a run's data lies, if it is here; a report builds and fetches nothing."""

from pathlib import Path

from cifarscale.config.recipe import TrainingRecipe
from cifarscale.data.build import default_folder
from cifarscale.data.manifest import MANIFEST_NAME
from cifarscale.errors import DataError


def shards_of(recipe: TrainingRecipe, data: str | None) -> Path:
    """The folder of shards that a run was trained on.

    Args:
        data: a data set or a folder of shards; None for the recipe's own.
    Raises: DataError if there is none.
    """
    name = data or recipe.data.dataset
    for folder in (Path(name), default_folder(name)):
        if (folder / MANIFEST_NAME).is_file():
            return folder
    raise DataError(f"the shards of {name} are not here, so no image was looked at. Name their folder with --data")

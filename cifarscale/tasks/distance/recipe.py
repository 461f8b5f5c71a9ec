"""The recipe of a comparison: which images, and with what."""

from typing import Annotated, Literal

from pydantic import Field

from cifarscale.config.distance import DistanceConfig
from cifarscale.config.recipe import Recipe


class DistanceRecipe(Recipe):
    """Compares images with real ones."""

    task: Literal["distance"] = "distance"
    images: str = ""
    """What is measured: the folder of a generator's run, a folder of images, or a split of the data set."""
    dataset: str = ""
    """Data set of the real images; empty for the one that the generator was trained on."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Which images are generated."""
    save_statistics: str = ""
    """File for the statistics of the images, in pytorch-fid's format (.npz); empty for none."""
    distance: DistanceConfig = DistanceConfig()

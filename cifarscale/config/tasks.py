"""Every kind of recipe by the name of its task."""

from cifarscale.config.cnn import CnnRecipe
from cifarscale.config.dcgan import DcganRecipe
from cifarscale.config.recipe import Recipe

TASKS: dict[str, type[Recipe]] = {"cnn": CnnRecipe, "dcgan": DcganRecipe}
"""Recipe class of each value of `task`."""

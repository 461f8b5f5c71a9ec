"""Every kind of job by the name of its task."""

from cifarscale.config.cnn import ClassifierRecipe
from cifarscale.config.dcgan import GanRecipe
from cifarscale.config.distance import DistanceRecipe
from cifarscale.config.evaluate import EvaluateRecipe
from cifarscale.config.recipe import Recipe
from cifarscale.config.sweep import SweepRecipe

TASKS: dict[str, type[Recipe]] = {
    "classifier": ClassifierRecipe,
    "gan": GanRecipe,
    "distance": DistanceRecipe,
    "evaluate": EvaluateRecipe,
    "sweep": SweepRecipe,
}
"""Class of each value of `task`."""

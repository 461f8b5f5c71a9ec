"""Every kind of job by the name of its task."""

from cifarscale.config.cnn import CnnRecipe
from cifarscale.config.dcgan import DcganRecipe
from cifarscale.config.distance import FidJob
from cifarscale.config.evaluate import EvaluateJob
from cifarscale.config.recipe import Job
from cifarscale.config.sweep import SweepJob

TASKS: dict[str, type[Job]] = {
    "classifier": CnnRecipe,
    "gan": DcganRecipe,
    "distance": FidJob,
    "evaluate": EvaluateJob,
    "sweep": SweepJob,
}
"""Class of each value of `task`."""

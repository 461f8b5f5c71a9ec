"""The task that stands for those of code that is not imported: its runs can be listed, and not be run."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from pydantic import ConfigDict

from cifarscale.config.code import require_imported
from cifarscale.config.recipe import TrainingRecipe
from cifarscale.config.registry import UNREAD, register_task
from cifarscale.data.manifest import Manifest
from cifarscale.runs.options import RunOptions
from cifarscale.tasks.base import PreparedRun
from cifarscale.tasks.training import TrainingTask

if TYPE_CHECKING:
    import torch

    from cifarscale.training.learner import LearnerContext


class UnreadRecipe(TrainingRecipe):
    """A recipe of which only the keys that all trainings share are known."""

    model_config = ConfigDict(extra="allow")


@register_task(UNREAD)
class UnreadTask(TrainingTask):
    """Refuses what needs the code."""

    recipe = UnreadRecipe

    def prepare(self, recipe: UnreadRecipe, run_dir: Path | None, data: str | None, options: RunOptions) -> PreparedRun:
        _refuse(recipe)

    def learner(self, recipe: UnreadRecipe, context: "LearnerContext") -> NoReturn:
        _refuse(recipe)

    def load(self, recipe: UnreadRecipe, manifest: Manifest, state: dict[str, Any], device: "torch.device") -> NoReturn:
        _refuse(recipe)


def _refuse(recipe: UnreadRecipe) -> NoReturn:
    require_imported(recipe.code, recipe.modules)
    raise AssertionError("imported code registers its own task")

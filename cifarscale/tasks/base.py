"""What the rest of the house asks a task."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, cast

from cifarscale.config.recipe import Recipe, TrainingRecipe
from cifarscale.config.registry import RegisteredTask, registered_task, registered_tasks
from cifarscale.data.manifest import Manifest
from cifarscale.runs.options import RunOptions
from cifarscale.runs.run_folder import RunFolder
from cifarscale.tasks.view import View

if TYPE_CHECKING:
    from cifarscale.tracking.sink import Sink
    from cifarscale.training.cost import ModelSummary
    from cifarscale.training.signals import StopRequest


@dataclass(frozen=True)
class PreparedRun:
    """A resolved and checked recipe with all that its run needs, wherever it is started.

    Attributes:
        run_dir: absolute.
        manifest: of the shards that it trains on; None where nothing is trained.
    """

    recipe: Recipe
    run_dir: Path
    options: RunOptions
    manifest: Manifest | None = None

    @property
    def num_shards(self) -> int:
        """Shards of the training split; 0 where nothing is trained."""
        return len(self.manifest.split("train").shards) if self.manifest else 0

    def make_folder(self) -> None:
        """Makes the run folder with its recipe.toml. Raises: RunError if it holds another run."""
        RunFolder(self.run_dir).prepare(self.recipe, self.manifest)

    def result(self) -> dict[str, Any] | None:
        """The result if the run is complete. Raises: RunError if the folder is that of another recipe."""
        folder = RunFolder(self.run_dir)
        result = folder.result()
        if result is not None:
            folder.require(self.recipe)
        return result


class Task(RegisteredTask, ABC):
    """What a recipe computes, and how that is shown. Its module imports no torch; its methods may."""

    command: ClassVar[str] = "submit"
    """The command of ours that runs such a recipe by its file."""
    view: View = View()

    @abstractmethod
    def prepare(self, recipe: Any, run_dir: Path | None, data: str | None, options: RunOptions) -> PreparedRun:
        """Resolves a recipe, and checks all that can be known before it runs.

        Args:
            run_dir: None for the recipe's own, `runs/NAME-HASH`.
            data: a data set or a folder of shards; None for the recipe's own.
            options: but for the shards, which are located here.
        Raises: ConfigError, DataError or RunError for what is missing or does not fit.
        """

    @abstractmethod
    def run(
        self,
        recipe: Any,
        folder: RunFolder,
        options: RunOptions,
        sink: "Sink | None" = None,
        stop: "StopRequest | None" = None,
    ) -> dict[str, Any]:
        """What every rank does. The first one writes result.json.

        Args:
            sink: takes what a training reports; what it raises ends the run.
            stop: how the caller asks a training to stop; None for signals.
        Returns: the result, the same on every rank.
        """

    def varied(self, recipe: Any) -> TrainingRecipe | None:
        """The recipe that one of this task varies; None where it varies none.

        Raises: ConfigError if it cannot be read.
        """
        return None

    def models(self, code: str = "", recipe: Recipe | None = None) -> "Sequence[ModelSummary]":
        """Lines of the table of models.

        Args:
            code: the digest of a user's own, whose networks are to be among them; empty for none.
            recipe: whose network is to be among them, with the options that it sets.
        """
        return ()


def task_named(name: str, code: str = "") -> Task:
    """The task of a name. Raises: KeyError if there is none.

    Args:
        code: the digest of a recipe's own code; empty for none.
    """
    return cast(Task, registered_task(name, code))


def tasks_named(code: str = "") -> dict[str, Task]:
    """All tasks by name, but for plugins' that cannot be imported. `code`: as of `task_named`."""
    return cast(dict[str, Task], registered_tasks(code))


def task_of(recipe: Recipe) -> Task:
    """The task of a recipe."""
    return task_named(recipe.task, recipe.code if isinstance(recipe, TrainingRecipe) else "")

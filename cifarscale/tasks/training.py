"""What all tasks that train have in common."""

import logging
from abc import abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from cifarscale.config.code import following, require_imported, trust
from cifarscale.config.load import with_values
from cifarscale.config.ranks import check_num_workers
from cifarscale.config.recipe import TrainingRecipe, stages_of
from cifarscale.config.registry import DataSpec
from cifarscale.data.build import folder_that_is_here, locate_shards
from cifarscale.data.manifest import Manifest
from cifarscale.errors import DataError, short_path, typed
from cifarscale.runs.options import RunOptions
from cifarscale.runs.run_folder import RunFolder, default_run_dir, run_of_other_code
from cifarscale.tasks.base import PreparedRun, Task, task_of

if TYPE_CHECKING:
    import torch
    from torch import nn

    from cifarscale.tasks.trained import Trained
    from cifarscale.tracking.sink import Sink
    from cifarscale.training.cost import Cost
    from cifarscale.training.learner import Learner, LearnerContext
    from cifarscale.training.signals import StopRequest

log = logging.getLogger(__name__)


class TrainingTask(Task):
    """Trains networks."""

    command = "train"
    trains: ClassVar[str] = ""
    """What commands may ask of a run: `classifier` or `generator`; empty for neither."""
    progress_metrics: ClassVar[tuple[str, ...]] = ("loss",)
    """Logged values that the progress bar shows."""

    @abstractmethod
    def learner(self, recipe: Any, context: "LearnerContext") -> "Learner":
        """What the engine trains: for a stage of a recipe, with freshly drawn weights."""

    @abstractmethod
    def load(self, recipe: Any, manifest: Manifest, state: dict[str, Any], device: "torch.device") -> "Trained":
        """The trained networks in the state of a checkpoint."""

    def check_needs(self, recipe: Any, of_sweep: bool = False) -> None:
        """Checks that what a run of the recipe needs is here.

        Args:
            of_sweep: whether trials will need it, side by side: what can be fetched is fetched now.
        Raises: ConfigError, DataError, RunError or EvaluationError if it is not.
        """

    def check_data(self, recipe: Any, data: DataSpec, metric: str = "") -> None:
        """Checks that the networks of a recipe can be trained on such images.

        Args:
            metric: by which a sweep compares runs; empty for none.
        Raises: ConfigError if they cannot, with what they can.
        """

    def tie(self, recipe: Any) -> Any:
        """The recipe tied to what it refers to outside of its data: of files and runs the place and the identity.

        Raises: ConfigError or RunError if that is not here, or does not fit.
        """
        return recipe

    def networks(self, recipe: Any, manifest: Manifest) -> "Mapping[str, nn.Module]":
        """What a recipe trains, with freshly drawn weights, on the CPU; empty if that is known only when it runs."""
        return {}

    def cost(self, recipe: Any, manifest: Manifest) -> "Cost | None":
        """What a stage of a recipe costs; None if that is known only when it runs.

        Raises: ConfigError if the network does not take the images of this stage.
        """
        return None

    def check_code(self, recipe: Any, manifest: Manifest, device: str) -> None:
        """Checks that what a user's own code makes of the recipe can be trained.

        Args:
            device: the run's, as in RunOptions.
        Raises: ConfigError if it cannot.
        """

    def gives_features(self, recipe: Any, manifest: Manifest) -> bool:
        """Whether what a run of the recipe trains gives features, by which images can be compared."""
        return True

    def wandb_tables(self, run_dir: Path) -> dict[str, Any]:
        """What W&B gets at the end of a run, beside its metrics, result and samples."""
        return {}

    def prepare(self, recipe: Any, run_dir: Path | None, data: str | None, options: RunOptions) -> PreparedRun:
        check_num_workers(recipe, options.num_workers)
        shards = locate_data(recipe, data)
        resolved, manifest = resolve(recipe, shards), Manifest.load(shards)
        trust(resolved.code, resolved.modules)
        folder = RunFolder((run_dir or default_run_dir(resolved)).absolute())
        if folder.recipe.exists():
            folder.require(resolved)
        elif (earlier := run_of_other_code(resolved, folder.path)) is not None:
            before, now = short_path(earlier), short_path(folder.path)
            log.info(
                "the code has changed since %s: this is another run. Compare: cifarscale runs diff %s %s",
                *(before, typed(before), typed(now)),
            )
        if folder.result() is None:
            manifest.require(resolved.data.fingerprint, shards)
            for stage in stages_of(resolved):
                self.check_data(stage.recipe, manifest.spec)
            self.check_needs(resolved)
            if resolved.code:
                with following(resolved.code):
                    self.check_code(resolved, manifest, options.device)
            self.check_cost(resolved, manifest)
        return PreparedRun(resolved, folder.path, options.on(shards.resolve()), manifest)

    def check_cost(self, recipe: TrainingRecipe, manifest: Manifest) -> None:
        """Raises: ConfigError if the networks exceed the budget, do not take what they will be given, or have no
        parameter for one of the recipe's rates."""
        budget, rates = recipe.budget, recipe.training.rates
        if (budget.max_parameters or rates) and (networks := self.networks(recipe, manifest)):
            from cifarscale.training.cost import check_budget
            from cifarscale.training.optimisation import check_rates

            check_budget(networks, budget)
            check_rates(networks, rates)
        for stage in stages_of(recipe):
            if stage.recipe.changes_input:
                self.cost(stage.recipe, manifest)

    def run(
        self,
        recipe: Any,
        folder: RunFolder,
        options: RunOptions,
        sink: "Sink | None" = None,
        stop: "StopRequest | None" = None,
    ) -> dict[str, Any]:
        from cifarscale.training.run import Trainee, train

        trainee = Trainee(self.learner, self.cost, self.progress_metrics, self.wandb_tables)
        return train(trainee, recipe, folder, options, sink, stop)


def locate_data(recipe: TrainingRecipe, data: str | None) -> Path:
    """The folder of shards of a recipe, built where it is missing.

    Args:
        data: a data set or a folder of shards; None for the recipe's own, which its own code may register.
    Raises: DataError if there is none; ConfigError if code of a run would have to build it that is not trusted.
    """
    name = data or recipe.data.dataset
    if folder_that_is_here(name) is None:
        require_imported(recipe.code, recipe.modules)
    try:
        return locate_shards(name, recipe.code)
    except DataError as error:
        if data:
            raise
        text = str(error).removeprefix("--data ")
        raise DataError(f"data.dataset of the recipe: {text}. Shards that lie elsewhere: --data FOLDER") from error


def resolve(recipe: TrainingRecipe, shards: Path) -> TrainingRecipe:
    """The recipe tied to the shards that it runs on: the identity of a run is that of its data, too."""
    manifest = Manifest.load(shards)
    fingerprint = recipe.data.fingerprint or manifest.fingerprint
    task = task_of(recipe)
    assert isinstance(task, TrainingTask)
    tied: TrainingRecipe = task.tie(with_values(recipe, data__dataset=manifest.dataset, data__fingerprint=fingerprint))
    return tied

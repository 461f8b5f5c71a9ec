"""The task `gan`."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from cifarscale.config.recipe import Recipe
from cifarscale.config.registry import DataSpec, register_task
from cifarscale.data.manifest import Manifest
from cifarscale.tasks.distance.needs import check_features
from cifarscale.tasks.gan.recipe import GanRecipe
from cifarscale.tasks.gan.view import GanView
from cifarscale.tasks.training import TrainingTask

if TYPE_CHECKING:
    import torch

    from cifarscale.tasks.gan.generated import TrainedGan
    from cifarscale.training.cost import Cost, ModelSummary
    from cifarscale.training.learner import Learner, LearnerContext


@register_task("gan")
class GanTask(TrainingTask):
    """Trains a generator against a discriminator."""

    recipe = GanRecipe
    view = GanView()
    trains = "generator"
    progress_metrics = ("discriminator_loss", "generator_loss", "real_score", "fake_score")

    def check_needs(self, recipe: GanRecipe, of_sweep: bool = False) -> None:
        check_features(recipe.distance, of_sweep)

    def check_data(self, recipe: GanRecipe, data: DataSpec, metric: str = "") -> None:
        recipe.model.check_data(data)

    def cost(self, recipe: GanRecipe, manifest: Manifest) -> "Cost":
        from cifarscale.tasks.gan.learner import cost_of

        return cost_of(recipe, manifest)

    def learner(self, recipe: GanRecipe, context: "LearnerContext") -> "Learner":
        from cifarscale.tasks.distance.reference import open_reference
        from cifarscale.tasks.gan.learner import GanLearner

        reference, distance = None, recipe.distance
        if distance.features != "none":
            conditional, shards = recipe.model.conditional, context.data.folder
            group, pool, device = context.group, context.pool, context.device
            reference = open_reference(distance, shards, distance.num_samples, conditional, group, pool, device)
        return GanLearner(recipe, context, reference)

    def load(
        self, recipe: GanRecipe, manifest: Manifest, state: dict[str, Any], device: "torch.device"
    ) -> "TrainedGan":
        from cifarscale.tasks.gan.generated import TrainedGan
        from cifarscale.tasks.gan.learner import build_networks

        generator, _ = build_networks(recipe, manifest, device)
        generator.load_state_dict((state["averages"] or state["networks"])["generator"])
        return TrainedGan(recipe, manifest, generator.eval(), state["step"], device)

    def models(self, code: str = "", recipe: Recipe | None = None) -> "Sequence[ModelSummary]":
        from cifarscale.tasks.gan.networks import summaries

        return summaries()

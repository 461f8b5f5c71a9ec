"""The task `gan`."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from cifarscale.config.recipe import Recipe
from cifarscale.config.registry import register_task
from cifarscale.data.manifest import Manifest
from cifarscale.tasks.gan.recipe import GanRecipe
from cifarscale.tasks.gan.view import GanView
from cifarscale.tasks.generating import GeneratingTask

if TYPE_CHECKING:
    import torch
    from torch import nn

    from cifarscale.tasks.generated import TrainedLatentGenerator
    from cifarscale.training.cost import Cost, ModelSummary
    from cifarscale.training.learner import Learner, LearnerContext


@register_task("gan")
class GanTask(GeneratingTask):
    """Trains a generator against a discriminator."""

    recipe = GanRecipe
    view = GanView()
    progress_metrics = ("discriminator_loss", "generator_loss", "real_score", "fake_score")

    def networks(self, recipe: GanRecipe, manifest: Manifest) -> "Mapping[str, nn.Module]":
        import torch

        from cifarscale.tasks.gan.learner import build_networks

        generator, discriminator = build_networks(recipe, manifest, torch.device("cpu"))
        return {"discriminator": discriminator, "generator": generator}

    def cost(self, recipe: GanRecipe, manifest: Manifest) -> "Cost":
        from cifarscale.tasks.gan.learner import cost_of

        return cost_of(recipe, manifest)

    def learner(self, recipe: GanRecipe, context: "LearnerContext") -> "Learner":
        from cifarscale.tasks.gan.learner import GanLearner

        return GanLearner(recipe, context, self.comparison(recipe, context, recipe.model.conditional))

    def load(
        self, recipe: GanRecipe, manifest: Manifest, state: dict[str, Any], device: "torch.device"
    ) -> "TrainedLatentGenerator":
        from cifarscale.tasks.gan.learner import build_networks
        from cifarscale.tasks.generated import TrainedLatentGenerator

        generator, _ = build_networks(recipe, manifest, device)
        generator.load_state_dict((state["averages"] or state["networks"])["generator"])
        return TrainedLatentGenerator(recipe, manifest, generator.eval(), state["step"], device, generator)

    def models(self, code: str = "", recipe: Recipe | None = None) -> "Sequence[ModelSummary]":
        from cifarscale.tasks.gan.networks import summaries

        return summaries()

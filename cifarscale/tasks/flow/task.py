"""The task `flow`."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from cifarscale.config.recipe import Recipe
from cifarscale.config.registry import register_task
from cifarscale.data.manifest import Manifest
from cifarscale.tasks.flow.recipe import FlowRecipe
from cifarscale.tasks.flow.view import FlowView
from cifarscale.tasks.generating import GeneratingTask

if TYPE_CHECKING:
    import torch
    from torch import nn

    from cifarscale.tasks.generated import TrainedLatentGenerator
    from cifarscale.training.cost import Cost, ModelSummary
    from cifarscale.training.learner import Learner, LearnerContext


@register_task("flow")
class FlowTask(GeneratingTask):
    """Trains the velocity that takes noise to images."""

    recipe = FlowRecipe
    view = FlowView()

    def networks(self, recipe: FlowRecipe, manifest: Manifest) -> "Mapping[str, nn.Module]":
        import torch

        from cifarscale.tasks.flow.learner import build_network

        return {"velocity": build_network(recipe, manifest, torch.device("cpu"))}

    def cost(self, recipe: FlowRecipe, manifest: Manifest) -> "Cost":
        from cifarscale.tasks.flow.learner import cost_of

        return cost_of(recipe, manifest)

    def learner(self, recipe: FlowRecipe, context: "LearnerContext") -> "Learner":
        from cifarscale.tasks.flow.learner import FlowLearner

        return FlowLearner(recipe, context, self.comparison(recipe, context, recipe.model.conditional))

    def load(
        self, recipe: FlowRecipe, manifest: Manifest, state: dict[str, Any], device: "torch.device"
    ) -> "TrainedLatentGenerator":
        from cifarscale.tasks.flow.learner import build_network
        from cifarscale.tasks.flow.sampler import Sampler
        from cifarscale.tasks.generated import TrainedLatentGenerator

        network = build_network(recipe, manifest, device)
        network.load_state_dict((state["averages"] or state["networks"])["velocity"])
        sampler = Sampler(network.eval(), recipe.sampler, manifest.spec.image_shape)
        return TrainedLatentGenerator(recipe, manifest, network, state["step"], device, sampler)

    def models(self, code: str = "", recipe: Recipe | None = None) -> "Sequence[ModelSummary]":
        from cifarscale.tasks.flow.networks import summaries

        return summaries()

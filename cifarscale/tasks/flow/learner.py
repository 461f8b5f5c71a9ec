"""How a flow is trained: the network learns the velocities of straight paths from noise to images."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import nn

from cifarscale.data.batches import Batch
from cifarscale.data.images import ImageSet
from cifarscale.data.manifest import Manifest
from cifarscale.tasks.flow.networks.unet import UNet
from cifarscale.tasks.flow.paths import draw_times, on_path
from cifarscale.tasks.flow.recipe import FlowRecipe
from cifarscale.tasks.flow.sampler import Sampler
from cifarscale.tasks.generated import generated_images
from cifarscale.tasks.generator_learner import Comparison, GeneratorLearner, real_images
from cifarscale.training.cost import BACKWARD, Cost, count_macs
from cifarscale.training.learner import LearnerContext, Outputs


def build_network(recipe: FlowRecipe, manifest: Manifest, device: torch.device) -> UNet:
    """The network with freshly drawn weights, a function of the seed; channels last in memory."""
    model, data = recipe.model, manifest.spec
    torch.manual_seed(recipe.seed)
    network = UNet(
        model.widths,
        model.blocks,
        model.attention,
        model.heads,
        model.embedding,
        data.num_classes if model.conditional else 0,
        data.image_shape[0],
    )
    return network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]


def cost_of(recipe: FlowRecipe, manifest: Manifest) -> Cost:
    """What a stage costs: what an image takes to generate, and what one takes in a training step."""
    network = build_network(recipe, manifest, torch.device("cpu"))
    macs = count_macs(network, manifest.spec.image_shape, ())
    return Cost(macs * recipe.sampler.evaluations, macs * (1 + BACKWARD))


@dataclass(frozen=True)
class FlowBatch:
    """Places on paths from noise to images.

    Attributes:
        places: (b, C, H, W).
        velocities: (b, C, H, W), of the paths.
        times: (b,) in [0, 1].
        labels: (b,) int64, of the images; the number of classes where an image is shown without its class.
    """

    places: torch.Tensor
    velocities: torch.Tensor
    times: torch.Tensor
    labels: torch.Tensor

    def part(self, i: int, parts: int) -> Self:
        """Every `parts`-th sample from number i on."""
        take = slice(i, None, parts)
        return type(self)(self.places[take], self.velocities[take], self.times[take], self.labels[take])


class FlowLearner(GeneratorLearner):
    optimized_networks: ClassVar[tuple[str, ...]] = ("velocity",)

    def __init__(self, recipe: FlowRecipe, context: LearnerContext, comparison: Comparison | None = None) -> None:
        """
        Args:
            comparison: how generated images are compared with real ones; not at all without it.
        """
        super().__init__(recipe, context, comparison)
        self._recipe, self._device, manifest = recipe, context.device, context.data.manifest
        self._image_shape, self._num_classes = manifest.spec.image_shape, manifest.spec.num_classes
        self.networks = {"velocity": build_network(recipe, manifest, context.device)}

    def prepare(self, batch: Batch, step: int) -> FlowBatch:
        seed, positions = self._recipe.seed, batch.positions
        images = real_images(batch, seed, step, self._recipe.augmentation.flip)
        noise = batch.normals(seed, "noise", step, images[0].numel(), on_device=True).view(images.shape)
        noise = noise.contiguous(memory_format=torch.channels_last)
        objective = self._recipe.objective
        times = batch.values.tensor(
            ("time", None), step, lambda step: draw_times(objective, seed, step, positions), images.device
        )
        return FlowBatch(*on_path(noise, images, times), times, self._labels(batch, step))

    def obstacle_to_graphs(self) -> str:
        return ""

    def _labels(self, batch: Batch, step: int) -> torch.Tensor:
        """The labels of a batch, of which a share says that there is no class."""
        dropout = self._recipe.objective.class_dropout
        if not self._recipe.model.conditional or not dropout:
            return batch.labels
        dropped = batch.uniforms(self._recipe.seed, "class dropout", step, 1) < dropout
        return batch.labels.masked_fill(dropped.flatten(), self._num_classes)

    def loss(
        self, update: str, networks: Mapping[str, nn.Module], part: FlowBatch, step: int
    ) -> tuple[torch.Tensor, Outputs]:
        """The mean squared error of the velocities, in float32 whatever autocast says.

        Source: Liu et al. 2022 (arXiv 2209.03003), equation 1; Lipman et al. 2022 (arXiv 2210.02747), equation 23.
        """
        labels = part.labels if self._recipe.model.conditional else None
        velocities = networks["velocity"](part.places, part.times, labels)
        return (velocities.float() - part.velocities).square().mean(), ()

    def metrics(self, update: str, part: FlowBatch, outputs: Outputs) -> dict[str, torch.Tensor]:
        return {}

    def example_inputs(self, batch_size: int) -> dict[str, tuple[torch.Tensor, ...]]:
        images = torch.zeros(batch_size, *self._image_shape, device=self._device)
        times = torch.zeros(batch_size, device=self._device)
        labels = torch.zeros(batch_size, dtype=torch.int64, device=self._device)
        classes = (labels,) if self._recipe.model.conditional else ()
        return {"velocity": (images.to(memory_format=torch.channels_last), times, *classes)}

    def images(self, networks: Mapping[str, nn.Module], count: int) -> ImageSet:
        network = networks["velocity"]
        assert isinstance(network, UNet)
        sampler = Sampler(network, self._recipe.sampler, self._image_shape)
        return generated_images(sampler, self._recipe.seed, count, self._device)

"""How a GAN is trained: a step updates the discriminator, once or more, then the generator (Goodfellow et al. 2014)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import nn

from cifarscale.data.batches import Batch
from cifarscale.data.images import ImageSet
from cifarscale.data.manifest import Manifest
from cifarscale.tasks.gan.differentiable_augmentation import NUM_DRAWS, augment, augments
from cifarscale.tasks.gan.networks.dcgan import Discriminator, Generator
from cifarscale.tasks.gan.objectives import discriminator_loss, generator_loss, gradient_penalty, needs_real_images
from cifarscale.tasks.gan.recipe import GanRecipe
from cifarscale.tasks.generated import generated_images
from cifarscale.tasks.generator_learner import Comparison, GeneratorLearner, real_images
from cifarscale.training.cost import BACKWARD, Cost, count_macs
from cifarscale.training.learner import LearnerContext, Outputs


def build_networks(recipe: GanRecipe, manifest: Manifest, device: torch.device) -> tuple[Generator, Discriminator]:
    """Both networks with freshly drawn weights, a function of the seed; channels last in memory."""
    model = recipe.model
    data = manifest.spec
    num_classes = data.num_classes if model.conditional else 0
    size = data.image_shape[-1]
    torch.manual_seed(recipe.seed)
    generator = Generator(
        model.latent_size,
        model.generator_width,
        model.generator_normalisation,
        model.upsampling,
        num_classes,
        model.class_embedding,
        size,
    )
    discriminator = Discriminator(
        model.discriminator_width,
        model.discriminator_normalisation,
        model.downsampling,
        model.spectral,
        model.minibatch,
        num_classes,
        size,
    )
    for network in (generator, discriminator):
        network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return generator, discriminator


def cost_of(recipe: GanRecipe, manifest: Manifest) -> Cost:
    """What a stage costs: both networks in training, the generator alone in the end."""
    generator, discriminator = build_networks(recipe, manifest, torch.device("cpu"))
    conditional, objective = recipe.model.conditional, recipe.objective
    generated = count_macs(generator, (recipe.model.latent_size,), with_labels=conditional)
    judged = count_macs(discriminator, manifest.spec.image_shape, with_labels=conditional)
    trained = 1 + BACKWARD
    # A penalty goes back to the image, and from there through all of that once more.
    penalties = ((objective.r1 > 0) + (objective.r2 > 0)) * trained * judged / objective.penalty_every
    of_discriminator = generated + 2 * trained * judged + penalties
    # The discriminator is not trained by the generator's update: it only takes the gradient to the image.
    of_generator = trained * generated + 2 * judged + needs_real_images(objective) * judged
    return Cost(
        generated,
        round(recipe.discriminator_updates * of_discriminator + of_generator),
    )


@dataclass(frozen=True)
class GanBatch:
    """Real images and what as many generated ones are made from.

    Attributes:
        images: (b, 3, H, W) in [-1, 1].
        latents: (b, latent_size).
        labels: (b,) int64, also of the generated images.
        draws: (b, 4, NUM_DRAWS) for augmentation: the discriminator's real and generated images, the generator's.
    """

    images: torch.Tensor
    latents: torch.Tensor
    labels: torch.Tensor
    draws: torch.Tensor

    def part(self, i: int, parts: int) -> Self:
        """Every `parts`-th sample from number i on."""
        return self._taken(slice(i, None, parts))

    def share(self, i: int, shares: int) -> Self:
        """The samples of update i of `shares`: those at its positions, one after the other, in the step's batch."""
        size = len(self.images) // shares
        return self._taken(slice(i * size, (i + 1) * size))

    def _taken(self, rows: slice) -> Self:
        return type(self)(self.images[rows], self.latents[rows], self.labels[rows], self.draws[rows])


class GanLearner(GeneratorLearner):
    optimized_networks: ClassVar[tuple[str, ...]] = ("discriminator", "generator")

    def __init__(self, recipe: GanRecipe, context: LearnerContext, comparison: Comparison | None = None) -> None:
        """
        Args:
            comparison: how generated images are compared with real ones; not at all without it.
        """
        super().__init__(recipe, context, comparison)
        self._recipe, self._device = recipe, context.device
        self._image_shape = context.data.manifest.spec.image_shape
        self._augments = augments(recipe.augmentation)
        generator, discriminator = build_networks(recipe, context.data.manifest, context.device)
        self.networks = {"discriminator": discriminator, "generator": generator}

    def prepare(self, batch: Batch, step: int) -> GanBatch:
        seed = self._recipe.seed
        images = real_images(batch, seed, step, self._recipe.augmentation.flip)
        latents = batch.normals(seed, "latent", step, self._recipe.model.latent_size)
        draws = torch.empty(len(images), 4, 0, device=images.device)
        if self._augments:
            drawn = batch.uniforms(seed, "differentiable augmentation", step, 4 * NUM_DRAWS)
            draws = drawn.view(-1, 4, NUM_DRAWS)
        return GanBatch(images, latents, batch.labels, draws)

    def obstacle_to_graphs(self) -> str:
        return ""

    def kind_of(self, step: int) -> bool:
        """Whether it has gradient penalties."""
        return step % self._recipe.objective.penalty_every == 0

    def updates(self, prepared: GanBatch) -> Sequence[tuple[str, GanBatch]]:
        """Those of the discriminator, each on a global batch of its own, as in algorithm 1 of Goodfellow et al. 2014
        (arXiv 1406.2661), then the generator's on the last of these."""
        number = self._recipe.discriminator_updates
        shares = [prepared.share(i, number) for i in range(number)]
        return [*(("discriminator", share) for share in shares), ("generator", shares[-1])]

    def loss(
        self, update: str, networks: Mapping[str, nn.Module], part: GanBatch, step: int
    ) -> tuple[torch.Tensor, Outputs]:
        """The objective of each network; the discriminator's with its gradient penalties where the step has them."""
        return (
            self._discriminator_loss(networks, part, self.kind_of(step))
            if update == "discriminator"
            else self._generator_loss(networks, part)
        )

    def _discriminator_loss(
        self, networks: Mapping[str, nn.Module], part: GanBatch, penalised: bool
    ) -> tuple[torch.Tensor, Outputs]:
        objective = self._recipe.objective
        with torch.no_grad():
            images = networks["generator"](part.latents, self._labels(part))
        real, r1 = self._judged(networks, part, part.images, 0, penalised and objective.r1 > 0)
        fake, r2 = self._judged(networks, part, images, 1, penalised and objective.r2 > 0)
        loss = discriminator_loss(objective.name, real, fake)
        if not penalised:
            return loss, (loss, real, fake, torch.full_like(r1, torch.nan), torch.full_like(r2, torch.nan))
        seldom = objective.penalty_every
        return loss + seldom * objective.r1 * r1 + seldom * objective.r2 * r2, (loss, real, fake, r1, r2)

    def _generator_loss(self, networks: Mapping[str, nn.Module], part: GanBatch) -> tuple[torch.Tensor, Outputs]:
        objective = self._recipe.objective
        fake, _ = self._judged(networks, part, networks["generator"](part.latents, self._labels(part)), 2)
        real = None
        if needs_real_images(objective):
            with torch.no_grad():
                real, _ = self._judged(networks, part, part.images, 3)
        loss = generator_loss(objective.name, real, fake)
        return loss, (loss,)

    def _judged(
        self, networks: Mapping[str, nn.Module], part: GanBatch, images: torch.Tensor, use: int, penalised: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The logits (b,) of augmented images, and their gradient penalty if wanted; float32 whatever autocast says.

        Losses are means over many logits, or differences of two: half precision is too coarse for either.
        """
        if self._augments:
            images = augment(images, self._recipe.augmentation, part.draws[:, use])
        if not penalised:
            logits = networks["discriminator"](images, self._labels(part)).float()
            return logits, logits.new_zeros(())
        with torch.autocast(images.device.type, enabled=False):
            images = images.detach().float().requires_grad_()
            logits = networks["discriminator"](images, self._labels(part))
            return logits, gradient_penalty(logits, images)

    def _labels(self, part: GanBatch) -> torch.Tensor | None:
        return part.labels if self._recipe.model.conditional else None

    def metrics(self, update: str, part: GanBatch, outputs: Outputs) -> dict[str, torch.Tensor]:
        """The losses; D(x) and D(G(z)), the mean probabilities that real and generated images are called real; and
        the gradient penalties that are on, without their weights."""
        metrics = {f"{update}_loss": outputs[0]}
        if update == "discriminator":
            real, fake, r1, r2 = outputs[1:]
            metrics |= {"real_score": real.sigmoid().mean(), "fake_score": fake.sigmoid().mean()}
            objective = self._recipe.objective
            metrics |= {"r1": r1} if objective.r1 else {}
            metrics |= {"r2": r2} if objective.r2 else {}
        return metrics

    def example_inputs(self, batch_size: int) -> dict[str, tuple[torch.Tensor, ...]]:
        images = torch.zeros(batch_size, *self._image_shape, device=self._device)
        images = images.to(memory_format=torch.channels_last)
        latents = torch.zeros(batch_size, self._recipe.model.latent_size, device=self._device)
        labels = torch.zeros(batch_size, dtype=torch.int64, device=self._device)
        classes = (labels,) if self._recipe.model.conditional else ()
        return {"discriminator": (images, *classes), "generator": (latents, *classes)}

    def result(self, networks: Mapping[str, nn.Module]) -> dict[str, Any]:
        updates = self._recipe.discriminator_updates * self._recipe.training.max_steps
        return {"discriminator_updates": updates, **super().result(networks)}

    def images(self, networks: Mapping[str, nn.Module], count: int) -> ImageSet:
        generator = networks["generator"]
        assert isinstance(generator, Generator)
        return generated_images(generator, self._recipe.seed, count, self._device)

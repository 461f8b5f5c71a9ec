"""The DCGAN's task: binary cross-entropy (Goodfellow et al. 2014); in a step the discriminator, then the generator."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import nn
from torch.nn import functional as F

from cifarscale.config.recipe import DcganRecipe
from cifarscale.cores import Cores
from cifarscale.data.batches import Batch
from cifarscale.distributed import Group
from cifarscale.models.dcgan import Discriminator, Generator
from cifarscale.randomness import normals, uniforms
from cifarscale.tracking.samples import save_grid, to_uint8
from cifarscale.training.task import Outputs, Task

SAMPLES_SIDE = 8
"""Images along each side of the grids that a run saves."""
CHUNK = 64
"""Images generated at a time: fixed, so that an image does not depend on how many are wanted."""


def build_networks(recipe: DcganRecipe, device: torch.device) -> tuple[Generator, Discriminator]:
    """Both networks with freshly drawn weights, a function of the seed; channels last in memory."""
    model = recipe.model
    torch.manual_seed(recipe.seed)
    generator = Generator(model.latent_size, model.generator_width, model.normalisation)
    discriminator = Discriminator(model.discriminator_width, model.normalisation)
    for network in (generator, discriminator):
        network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return generator, discriminator


def generate_images(generator: Generator, seed: int, count: int, cores: Cores, device: torch.device) -> torch.Tensor:
    """Images (count, 3, 32, 32) uint8 on the CPU; image i is a function of the generator, the seed and i alone."""
    training = generator.training
    generator.eval()

    def chunk(start: int) -> torch.Tensor:
        with torch.inference_mode():  # whole chunks always, so that each is computed in the same way
            latents = normals(seed, "generate", 0, range(start, start + CHUNK), generator.latent_size).to(device)
            return to_uint8(generator(latents)).cpu()

    images = torch.cat(cores.map(chunk, range(0, count, CHUNK)))[:count]
    generator.train(training)
    return images


@dataclass(frozen=True)
class ImagesAndLatents:
    """Real images (b, 3, 32, 32) in [-1, 1], and the noise (b, latent_size) of as many generated ones."""

    images: torch.Tensor
    latents: torch.Tensor

    def part(self, i: int, parts: int) -> Self:
        """Every `parts`-th sample from number i on."""
        return type(self)(self.images[i::parts], self.latents[i::parts])


class DcganTask(Task):
    updates: ClassVar[tuple[str, ...]] = ("discriminator", "generator")
    shown: ClassVar[tuple[str, ...]] = ("discriminator_loss", "generator_loss", "real_score", "fake_score")

    def __init__(self, recipe: DcganRecipe, samples: Path, group: Group, cores: Cores, device: torch.device) -> None:
        self._recipe, self._samples, self._group, self._cores, self._device = recipe, samples, group, cores, device
        generator, discriminator = build_networks(recipe, device)
        self.networks = {"discriminator": discriminator, "generator": generator}

    def prepare(self, batch: Batch, step: int) -> ImagesAndLatents:
        seed, positions = self._recipe.seed, batch.positions
        images = batch.images
        if self._recipe.flip:
            mirrored = torch.from_numpy(uniforms(seed, "augmentation", step, positions, 1)) < 0.5
            images = torch.where(mirrored.view(-1, 1, 1, 1).to(images.device), images.flip(-1), images)
        floats = images.to(torch.float32, memory_format=torch.channels_last).sub_(127.5).div_(127.5)
        latents = normals(seed, "latent", step, positions, self._recipe.model.latent_size)
        return ImagesAndLatents(floats, latents.to(images.device, non_blocking=True))

    def loss(
        self, update: str, networks: Mapping[str, nn.Module], part: ImagesAndLatents, step: int
    ) -> tuple[torch.Tensor, Outputs]:
        """Each network's loss on its own; the generator's is the non-saturating one."""
        if update == "discriminator":
            with torch.no_grad():
                fakes = networks["generator"](part.latents)
            real, fake = networks["discriminator"](part.images), networks["discriminator"](fakes)
            loss = _cross_entropy(real, 1.0) + _cross_entropy(fake, 0.0)
            return loss, (loss, real, fake)
        loss = _cross_entropy(networks["discriminator"](networks["generator"](part.latents)), 1.0)
        return loss, (loss,)

    def figures(self, update: str, part: ImagesAndLatents, outputs: Outputs) -> dict[str, torch.Tensor]:
        """The losses; and D(x) and D(G(z)), the mean probabilities that real and generated images are called real."""
        figures = {f"{update}_loss": outputs[0]}
        if update == "discriminator":
            figures["real_score"], figures["fake_score"] = (logits.sigmoid().mean() for logits in outputs[1:])
        return figures

    def example_inputs(self, batch_size: int) -> dict[str, tuple[torch.Tensor, ...]]:
        images = torch.zeros(batch_size, 3, 32, 32, device=self._device).to(memory_format=torch.channels_last)
        latents = torch.zeros(batch_size, self._recipe.model.latent_size, device=self._device)
        return {"discriminator": (images,), "generator": (latents,)}

    def evaluate(self, networks: Mapping[str, nn.Module], step: int) -> dict[str, float]:
        """Saves a grid of images from the run's fixed noise."""
        self._save_samples(networks["generator"], step)
        return {}

    def result(self, networks: Mapping[str, nn.Module]) -> dict[str, Any]:
        return {"samples": self._save_samples(networks["generator"], self._recipe.training.max_steps)}

    def _save_samples(self, generator: nn.Module, step: int) -> str:
        """Saves a grid of the run's fixed samples. Returns: its path within the run folder."""
        path = self._samples / f"step-{step:08d}.png"
        if self._group.ranks.is_first:
            assert isinstance(generator, Generator)
            images = generate_images(generator, self._recipe.seed, SAMPLES_SIDE**2, self._cores, self._device)
            save_grid(images.permute(0, 2, 3, 1).numpy(), SAMPLES_SIDE, path)
        return f"{path.parent.name}/{path.name}"


def _cross_entropy(logits: torch.Tensor, target: float) -> torch.Tensor:
    """Binary cross-entropy of logits with one target for all, in nats."""
    return F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, target))

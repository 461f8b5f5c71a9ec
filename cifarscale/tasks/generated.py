"""The images that a generator draws from noise."""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import nn

from cifarscale.data.images import ImageSet
from cifarscale.distributed.randomness import normals
from cifarscale.tasks.trained import CHUNK, Pixels, Portable, TrainedGenerator
from cifarscale.tracking.samples import to_uint8


class LatentGenerator(Protocol):
    """A module that makes images from noise.

    Attributes:
        latent_size: standard normal numbers that an image is made from.
        num_classes: 0, or how many classes an image can be asked of.
    """

    latent_size: int
    num_classes: int

    def __call__(self, latents: torch.Tensor, labels: torch.Tensor | None = None) -> torch.Tensor:
        """(N, latent_size), and labels (N,) int64 where there are classes, to images (N, 3, H, W) in [-1, 1]."""
        ...


class GeneratedImages:
    """The images that a generator draws for a seed, without end; image i is a function of both and of i alone.

    Args:
        label: the class of all images; without it a conditional generator's image i is of class i mod num_classes.
    """

    def __init__(self, generator: LatentGenerator, seed: int, device: torch.device, label: int | None = None) -> None:
        self._generator, self._seed, self._device, self._label = generator, seed, device, label

    def labels(self, rows: range) -> torch.Tensor | None:
        """The classes (b,) int64 of the images `rows`; None without classes."""
        if not self._generator.num_classes:
            return None
        numbers = torch.arange(rows.start, rows.stop)
        return numbers.fill_(self._label) if self._label is not None else numbers % self._generator.num_classes

    def __call__(self, rows: range) -> torch.Tensor:
        """Images `rows`, (b, 3, H, W) uint8 on the device. The generator must be in evaluation mode."""
        first = rows.start // CHUNK * CHUNK
        # Whole chunks always: how many images are computed together decides over their last bits.
        images = torch.cat([self._chunk(start) for start in range(first, rows.stop, CHUNK)])
        return images[rows.start - first : rows.stop - first]

    @torch.inference_mode()
    def _chunk(self, start: int) -> torch.Tensor:
        rows = range(start, start + CHUNK)
        latents = normals(self._seed, "generate", 0, rows, self._generator.latent_size).to(self._device)
        labels = self.labels(rows)
        return to_uint8(self._generator(latents, None if labels is None else labels.to(self._device)))


def generated_images(
    generator: LatentGenerator, seed: int, count: int, device: torch.device, label: int | None = None
) -> ImageSet:
    """The first `count` of `GeneratedImages`."""
    images = GeneratedImages(generator, seed, device, label)
    return ImageSet("generated", count, images, images.labels(range(count)))


class WithPixels(nn.Module):
    """A generator whose images have pixels as files have them, in place of values in [-1, 1].

    From latents (N, latent_size), standard normal, and labels (N,) int64 where it knows classes, to images
    (N, 3, H, W).
    """

    def __init__(self, generator: LatentGenerator, pixels: Pixels) -> None:
        super().__init__()
        self.generator, self._pixels = generator, pixels

    def forward(self, latents: torch.Tensor, labels: torch.Tensor | None = None) -> torch.Tensor:
        images = self.generator(latents, labels)
        return to_uint8(images) if self._pixels == "uint8" else images.add(1).div(2)


@dataclass(frozen=True)
class TrainedLatentGenerator(TrainedGenerator):
    """Draws images from noise.

    Attributes:
        generator: the trained network, or what makes images by it.
    """

    generator: LatentGenerator

    @property
    def is_conditional(self) -> bool:
        return self.generator.num_classes > 0

    def images(self, seed: int, count: int, label: int | None = None) -> ImageSet:
        return generated_images(self.generator, seed, count, self.device, label)

    def portable(self, pixels: Pixels) -> Portable:
        """Latents, and labels where it knows classes, to images: `WithPixels`."""
        generator = self.generator

        def inputs(count: int) -> dict[str, torch.Tensor]:
            latents = normals(0, "generate", 0, range(count), generator.latent_size)
            classes = {"labels": torch.arange(count) % generator.num_classes} if generator.num_classes else {}
            return {"latents": latents, **classes}

        return Portable(WithPixels(generator, pixels).eval(), inputs, "images")

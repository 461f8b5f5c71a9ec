"""What has been trained, by what it can do."""

import difflib
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from cifarscale.config.recipe import TrainingRecipe
from cifarscale.config.registry import RegisteredMetric
from cifarscale.data.images import ImageSet, fitted, read_image
from cifarscale.data.manifest import Manifest
from cifarscale.data.normalisation import training_normalisation
from cifarscale.distributed.cpu_pool import CpuPool
from cifarscale.distributed.device import arithmetic
from cifarscale.errors import DataError, RunError

TOP = 5
CHUNK = 64
"""Images generated at a time: fixed, so that an image does not depend on how many are wanted."""
Pixels = Literal["float", "uint8"]
"""Of images that go into an exported network, or come out of one: floats from 0 to 1, or bytes from 0 to 255."""


@dataclass(frozen=True)
class Portable:
    """A trained network as it is used without this package.

    Attributes:
        module: from the inputs, in their order, to one tensor; in evaluation mode.
        inputs: gives examples of the inputs by name, each (N, …), for a number of samples N.
        output: what comes out, by name.
    """

    module: nn.Module
    inputs: Callable[[int], dict[str, torch.Tensor]]
    output: str


def example_images(count: int, shape: tuple[int, int, int], pixels: Pixels) -> torch.Tensor:
    """Images (count, *shape) of noise, the same at each call."""
    noise = torch.randint(0, 256, (count, *shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return noise if pixels == "uint8" else noise / 255


@dataclass(frozen=True)
class Trained:
    """What a run has trained in `step` steps."""

    recipe: TrainingRecipe
    manifest: Manifest
    network: nn.Module
    """In evaluation mode: the moving average of the weights where the recipe keeps one."""
    step: int
    device: torch.device

    def portable(self, pixels: Pixels) -> Portable:
        """The network with all that stands between it and images as they are.

        Raises: RunError if the task does not say what that is; its weights can be exported nevertheless.
        """
        raise RunError(
            f"task {self.recipe.task!r} does not say what its network takes and gives, so its weights alone can be "
            "exported. Run: cifarscale export RUN --to model.safetensors; or add `portable` to what the task's `load` "
            "returns (docs/extending.md)"
        )


@dataclass(frozen=True)
class TrainedClassifier(Trained):
    """Takes normalised images (b, 3, H, W) to logits (b, classes), and by `network.features` to features.

    Attributes:
        metrics: that evaluations report beside the accuracy.
    """

    metrics: tuple[RegisteredMetric, ...] = ()

    def predict(self, images: Sequence[Path]) -> list[list[tuple[str, float]]]:
        """For each image file the five most probable classes with their probabilities, most probable first.

        An image of another size than the classifier's is scaled, and cut to its middle.

        Raises: DataError if a file is not an image that Pillow opens.
        """
        if not images:
            return []
        size = self.manifest.image_size
        return self.predict_pixels(np.stack([np.array(fitted(read_image(path), size)) for path in images]))

    def predict_pixels(self, images: Any) -> list[list[tuple[str, float]]]:
        """The same of an array (N, H, W, 3) or a tensor (N, 3, H, W), uint8 or floats from 0 to 1.

        Raises: DataError for images of another shape than the classifier's.
        """
        pixels = images if isinstance(images, torch.Tensor) else torch.from_numpy(images).permute(0, 3, 1, 2)
        shape = self.manifest.spec.image_shape
        if pixels.ndim != 4 or tuple(pixels.shape[1:]) != shape:
            raise DataError(
                f"images of shape {tuple(images.shape)} are not what this classifier takes: an array "
                f"(N, {shape[1]}, {shape[2]}, 3) or a tensor (N, 3, {shape[1]}, {shape[2]})"
            )
        if not len(pixels):
            return []
        if pixels.is_floating_point():
            pixels = pixels.float() * 255
        normalise = training_normalisation(self.manifest, self.device)
        with torch.inference_mode(), arithmetic(self.device):
            probabilities = self.network(normalise(pixels.to(self.device))).softmax(1).cpu()
        names = self.manifest.fine_names
        top = probabilities.topk(min(TOP, len(names)), dim=1)
        return [
            [(names[label], value) for label, value in zip(labels, values, strict=True)]
            for labels, values in zip(top.indices.tolist(), top.values.tolist(), strict=True)
        ]

    def portable(self, pixels: Pixels) -> Portable:
        """Images (N, C, H, W) to logits (N, num_classes)."""
        shape = self.manifest.spec.image_shape
        return Portable(
            Normalised(self).eval(), lambda count: {"images": example_images(count, shape, pixels)}, "logits"
        )


class Normalised(nn.Module):
    """A trained classifier with its normalisation: images (N, 3, H, W), uint8 or floats from 0 to 1, to logits."""

    def __init__(self, trained: TrainedClassifier) -> None:
        super().__init__()
        self.network = trained.network
        train = trained.manifest.split("train")
        for name, values in (("mean", train.mean), ("std", train.std)):
            self.register_buffer(name, torch.tensor(values, device=trained.device).mul(255).view(3, 1, 1))

    mean: torch.Tensor
    std: torch.Tensor

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if images.ndim != 4 or images.shape[1] != 3:
            raise DataError(f"images of shape {tuple(images.shape)} are not what this network takes: (N, 3, H, W)")
        pixels = images.float() if images.dtype == torch.uint8 else images.float() * 255
        logits: torch.Tensor = self.network((pixels - self.mean) / self.std)
        return logits


@dataclass(frozen=True)
class TrainedGenerator(Trained, ABC):
    """Draws images."""

    @property
    @abstractmethod
    def is_conditional(self) -> bool:
        """Whether it draws images of classes."""

    @abstractmethod
    def images(self, seed: int, count: int, label: int | None = None) -> ImageSet:
        """The first `count` of the images that it draws for a seed, of a class or, if it knows classes, of all in turn.

        Image i is a function of the run, the seed, the class and i alone.
        """

    def generate(self, seed: int, count: int, class_name: str | None = None) -> NDArray[np.uint8]:
        """Images (count, H, W, 3) as `images` has them.

        Raises: RunError for a class that it does not know.
        """
        images = self.images(seed, count, None if class_name is None else self.label(class_name))
        with arithmetic(self.device):
            return drawn(images, CpuPool(one_core_each=self.device.type == "cpu"))

    def label(self, class_name: str) -> int:
        """The number of a class.

        Raises: RunError if the generator is unconditional, or has no such class.
        """
        names = self.manifest.fine_names
        if not self.is_conditional:
            raise RunError(
                f"class {class_name!r}: this generator is unconditional; train a conditional one with "
                "--set model.conditional=true"
            )
        if class_name in names:
            return names.index(class_name)
        near = difflib.get_close_matches(class_name, names, n=1)
        meant = f", did you mean {near[0]!r}?" if near else ""
        raise RunError(f"unknown class {class_name!r}{meant}; there are: {', '.join(names)}")


def drawn(images: ImageSet, pool: CpuPool) -> NDArray[np.uint8]:
    """All images of a set, (count, H, W, 3)."""
    count = images.num_images
    chunks = [range(start, min(start + CHUNK, count)) for start in range(0, count, CHUNK)]
    pixels = torch.cat([chunk.cpu() for chunk in pool.stream(images.images, chunks)])
    return pixels.permute(0, 2, 3, 1).numpy()

"""What all generators have in common while they are trained: the images they see, and how theirs are looked at."""

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import nn

from cifarscale.config.generator import GeneratorRecipe
from cifarscale.data.batches import Batch
from cifarscale.data.images import ImageSet
from cifarscale.data.mirroring import mirrored
from cifarscale.tasks.trained import drawn
from cifarscale.tracking.samples import save_grid
from cifarscale.training.learner import Learner, LearnerContext

SAMPLES_SIDE = 8
"""Images along each side of the grids that a run saves."""


class Comparison(Protocol):
    """Compares images with real ones; all ranks call it together, and get the same."""

    @property
    def key(self) -> str:
        """What the distance is called in the log."""
        ...

    def frechet(self, images: ImageSet) -> float: ...

    def metrics(self, images: ImageSet) -> dict[str, Any]: ...


def real_images(batch: Batch, seed: int, step: int, flip: bool) -> torch.Tensor:
    """The images of a batch (b, 3, H, W) in [-1, 1], channels last in memory.

    Args:
        flip: whether half of them are mirrored, left to right.
    """
    images = batch.images
    if flip:
        images = mirrored(images, batch.uniforms(seed, "augmentation", step, 1)[:, 0] < 0.5)
    return images.to(torch.float32, memory_format=torch.channels_last).sub_(127.5).div_(127.5)


class GeneratorLearner(Learner):
    """Evaluates by the images that are generated: a grid for people, and their distance to real ones."""

    def __init__(self, recipe: GeneratorRecipe, context: LearnerContext, comparison: Comparison | None = None) -> None:
        """
        Args:
            comparison: how generated images are compared with real ones; not at all without it.
        """
        self._distance, self._max_steps, self._comparison = recipe.distance, recipe.training.max_steps, comparison
        self._samples, self._group, self._pool = context.folder.samples, context.group, context.pool

    @abstractmethod
    def images(self, networks: Mapping[str, nn.Module], count: int) -> ImageSet:
        """The first `count` images of the run's fixed noise. The networks are in evaluation mode."""

    def evaluate(self, networks: Mapping[str, nn.Module], step: int) -> dict[str, float]:
        """Saves a grid of images from the run's fixed noise; and where it is time, measures the distance."""
        with _evaluating(networks):
            self._save_samples(networks, step)
            every = self._distance.every
            if self._comparison is None or not every or step % every:
                return {}
            return {self._comparison.key: self._comparison.frechet(self.images(networks, self._distance.num_samples))}

    def result(self, networks: Mapping[str, nn.Module]) -> dict[str, Any]:
        with _evaluating(networks):
            result: dict[str, Any] = {"samples": self._save_samples(networks, self._max_steps)}
            if self._comparison is not None:
                result["distance"] = self._comparison.metrics(self.images(networks, self._distance.num_samples))
            return result

    def _save_samples(self, networks: Mapping[str, nn.Module], step: int) -> str:
        """Saves a grid of the run's fixed samples. Returns: its path within the run folder."""
        path = self._samples / f"step-{step:08d}.png"
        if self._group.ranks.is_first:
            save_grid(drawn(self.images(networks, SAMPLES_SIDE**2), self._pool), SAMPLES_SIDE, path)
        return f"{path.parent.name}/{path.name}"


@contextmanager
def _evaluating(networks: Mapping[str, nn.Module]) -> Iterator[None]:
    """The networks are in evaluation mode for a while."""
    were_training = {name: network.training for name, network in networks.items()}
    for network in networks.values():
        network.eval()
    try:
        yield
    finally:
        for name, network in networks.items():
            network.train(were_training[name])

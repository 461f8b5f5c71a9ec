"""Augmentation of whole batches on the device.

What a sample gets is a function of (seed, step, position in the global batch), see `randomness`; what a batch shares,
of (seed, step). So it is the same for any number of ranks, on any device.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, Self

import torch
from torch.nn import functional as F

from cifarscale.config.code import kind_of, naming_the_line
from cifarscale.config.registry import augmentations
from cifarscale.data.batches import Batch
from cifarscale.data.mirroring import mirrored
from cifarscale.data.normalisation import Normalisation
from cifarscale.distributed.randomness import Draws, batch_generator, seed_torch, uniforms
from cifarscale.errors import ConfigError
from cifarscale.tasks.classifier.recipe import AugmentationConfig, ClassifierRecipe


@dataclass(frozen=True)
class LabelledImages:
    """Images (b, 3, H, W) float32, and their targets: `weight` of `labels` and 1 - weight of `others`, each (b,)."""

    images: torch.Tensor
    labels: torch.Tensor
    others: torch.Tensor
    weight: float

    def part(self, i: int, parts: int) -> Self:
        """Every `parts`-th sample from number i on."""
        if parts == 1:
            return self
        take = slice(i, None, parts)
        return replace(self, images=self.images[take], labels=self.labels[take], others=self.others[take])


@dataclass(frozen=True)
class Epochs:
    """Which epoch a sample of a batch belongs to.

    Attributes:
        num_samples: of an epoch.
        num_ids: ids lie below it; more than samples where some of them are set aside.
    """

    num_samples: int
    num_ids: int
    global_batch_size: int

    def of(self, step: int, positions: Sequence[int]) -> torch.Tensor:
        """The epochs (b,) of samples by their positions in the batch of a step; 0 is the first."""
        return (step * self.global_batch_size + torch.tensor(positions)) // self.num_samples


class OwnAugmentations:
    """The augmentations of the user's own that a recipe names, one after the other.

    Each microbatch is augmented by itself, and torch's generators are seeded before: so whatever a function does with a
    batch is the same for any number of ranks.
    """

    def __init__(self, recipe: ClassifierRecipe) -> None:
        """Raises: ConfigError if one cannot be made."""
        self._seed, self._num_microbatches = recipe.seed, recipe.training.microbatches
        self._augmentations = []
        for name, config in recipe.augmentation.own.items():
            registered = augmentations(recipe.code)[name]
            with naming_the_line(f"augmentation {name!r}", registered.code):
                self._augmentations.append((registered, registered.build(config)))

    @torch.no_grad()
    def __call__(self, images: torch.Tensor, positions: Sequence[int], step: int) -> torch.Tensor:
        """Images (b, 3, H, W) uint8 augmented, as floats from 0 to 255.

        Args:
            positions: theirs in the global batch.
        Raises: ConfigError for a function that fails, or returns something else than such images.
        """
        augmented = torch.empty_like(images, dtype=torch.float32)
        num_parts = max(1, sum(position < self._num_microbatches for position in positions))
        for i in range(num_parts):
            part = images[i::num_parts].to(torch.float32, memory_format=torch.contiguous_format) / 255
            for registered, augment in self._augmentations:
                purpose = f"augmentation {registered.name}"
                seed_torch(images.device, self._seed, purpose, step, positions[i])
                draws = Draws(self._seed, purpose, step, positions[i::num_parts], images.device)
                shape = part.shape
                with naming_the_line(f"augmentation {registered.name!r}", registered.code):
                    part = augment(part, draws)
                if not isinstance(part, torch.Tensor) or part.shape != shape or not part.is_floating_point():
                    raise ConfigError(
                        f"augmentation {registered.name!r} returned {kind_of(part)}, and was given images, float32 of "
                        f"shape {tuple(shape)}; it returns such images"
                    )
            augmented[i::num_parts] = part * 255
        return augmented


class Augmentation:
    """Crop, flip, a user's own, cutout, mixup and cutmix, as far as the recipe wants them, and another resolution."""

    def __init__(
        self,
        config: AugmentationConfig,
        normalise: Normalisation,
        seed: int,
        epochs: Epochs | None = None,
        own: OwnAugmentations | None = None,
    ) -> None:
        """
        Args:
            epochs: needed where the recipe has an alternating flip.
        """
        self._config = config
        self._normalise = normalise
        self._seed = seed
        self._own = own
        self._epochs = epochs
        self._first_flip = torch.empty(0)
        if config.alternating_flip:
            assert epochs is not None
            self._first_flip = torch.from_numpy(uniforms(seed, "first flip", 0, range(epochs.num_ids), 1)[:, 0] < 0.5)

    def __call__(self, batch: Batch, step: int) -> LabelledImages:
        """The samples of a rank's share of the batch of `step`, normalised and augmented."""
        config = self._config
        images = batch.images
        if config.crop_padding or config.flip or config.cutout:
            drawn = torch.from_numpy(uniforms(self._seed, "augmentation", step, batch.positions, 5))
            top, left, side, hole_y, hole_x = drawn.to(images.device, non_blocking=True).unbind(1)
        if config.crop_padding:
            images = random_crop(images, config.crop_padding, top, left, config.padding)
        if config.flip:
            images = mirrored(images, side < 0.5)
        if config.alternating_flip:
            images = mirrored(images, self._alternates(batch, step))
        if self._own:
            images = self._own(images, batch.positions, step)
        images = self._normalise(images)
        if config.resolution:
            images = scaled(images, config.resolution)
        if config.cutout:
            images = cutout(images, config.cutout, hole_y, hole_x)
        if config.mixes:
            return self._mix(images, batch.labels, step)
        return LabelledImages(images, batch.labels, batch.labels, 1.0)

    def _alternates(self, batch: Batch, step: int) -> torch.Tensor:
        """Which samples (b,) are mirrored: those drawn for the first epoch in even ones, the others in odd ones."""
        assert self._epochs is not None
        self._first_flip = self._first_flip.to(batch.ids.device)
        is_odd = (self._epochs.of(step, batch.positions) % 2 == 1).to(batch.ids.device, non_blocking=True)
        return self._first_flip[batch.ids] ^ is_odd

    def _mix(self, images: torch.Tensor, labels: torch.Tensor, step: int) -> LabelledImages:
        """Combines each sample with the one half a batch further on, which is in the same microbatch."""
        generator = batch_generator(self._seed, "mixing", step)
        both = self._config.mixup > 0 and self._config.cutmix > 0
        use_mixup = generator.random() < 0.5 if both else self._config.mixup > 0
        alpha = self._config.mixup if use_mixup else self._config.cutmix
        weight = float(generator.beta(alpha, alpha))
        half = len(images) // 2
        others, other_labels = images.roll(half, 0), labels.roll(half, 0)
        if use_mixup:
            return LabelledImages(torch.lerp(others, images, weight), labels, other_labels, weight)
        height, width = images.shape[-2:]
        side = (1 - weight) ** 0.5
        rows = _interval(float(generator.random()), side * height, height)
        columns = _interval(float(generator.random()), side * width, width)
        images[..., rows, columns] = others[..., rows, columns]
        pasted = (rows.stop - rows.start) * (columns.stop - columns.start) / (height * width)
        return LabelledImages(images, labels, other_labels, 1 - pasted)


def random_crop(
    images: torch.Tensor,
    padding: int,
    top: torch.Tensor,
    left: torch.Tensor,
    border: Literal["black", "reflect"] = "black",
) -> torch.Tensor:
    """Crops of the original size from images with a border; top and left are uniform in [0, 1), shape (b,)."""
    height, width = images.shape[-2:]
    rows_last = images.permute(0, 2, 3, 1)
    if border == "black":
        padded = F.pad(rows_last, (0, 0, padding, padding, padding, padding))  # (b, H+2p, W+2p, 3)
    else:
        rows, columns = (_reflected(size, padding, images.device) for size in (height, width))
        padded = rows_last[:, rows][:, :, columns]
    windows = padded.unfold(1, height, 1).unfold(2, width, 1)  # (b, 2p+1, 2p+1, 3, H, W), a view
    places = 2 * padding + 1
    index = torch.arange(len(images), device=images.device)
    cropped = windows.permute(0, 1, 2, 4, 5, 3)[index, (top * places).long(), (left * places).long()]
    return cropped.permute(0, 3, 1, 2)


def _reflected(size: int, padding: int, device: torch.device) -> torch.Tensor:
    """Where pixels -padding … size + padding - 1 of a line are found if it is mirrored at its first and last one."""
    places = torch.arange(-padding, size + padding, device=device).abs()
    return torch.where(places < size, places, 2 * (size - 1) - places)


def scaled(images: torch.Tensor, side: int) -> torch.Tensor:
    """Images (b, 3, side, side), each a function of its own alone; bilinear, without aliasing."""
    resized = F.interpolate(images, (side, side), mode="bilinear", antialias=True)
    return resized.contiguous(memory_format=torch.channels_last)


def cutout(images: torch.Tensor, side: int, centre_y: torch.Tensor, centre_x: torch.Tensor) -> torch.Tensor:
    """Sets a square around a random pixel to 0, the mean, clipped at the border (DeVries & Taylor 2017, 1708.04552)."""

    def inside(centre: torch.Tensor, size: int) -> torch.Tensor:
        first = (centre * size).floor() - side // 2
        offset = torch.arange(size, device=images.device) - first.unsqueeze(1)
        return (offset >= 0) & (offset < side)  # (b, size)

    rows, columns = inside(centre_y, images.shape[-2]), inside(centre_x, images.shape[-1])
    return images.masked_fill_((rows.unsqueeze(2) & columns.unsqueeze(1)).unsqueeze(1), 0.0)


def _interval(centre: float, length: float, size: int) -> slice:
    """Pixels of an interval around a random pixel, clipped at the border."""
    middle = int(centre * size)
    return slice(max(0, round(middle - length / 2)), min(size, round(middle + length / 2)))

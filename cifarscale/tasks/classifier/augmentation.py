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
from cifarscale.distributed.step_values import DIRECT, Number, StepValues
from cifarscale.errors import ConfigError
from cifarscale.tasks.classifier.recipe import AugmentationConfig, ClassifierRecipe


@dataclass(frozen=True)
class LabelledImages:
    """Images (b, 3, H, W) float32, and their targets (b,): `weight` of `labels` and `rest`, 1 - weight, of `others`."""

    images: torch.Tensor
    labels: torch.Tensor
    others: torch.Tensor
    weight: Number = 1.0
    rest: Number = 0.0

    @property
    def are_mixed(self) -> bool:
        """Whether the others count, too."""
        return isinstance(self.weight, torch.Tensor) or self.weight < 1

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
    def __call__(
        self, images: torch.Tensor, positions: Sequence[int], step: int, values: StepValues = DIRECT
    ) -> torch.Tensor:
        """Images (b, 3, H, W) uint8 augmented, as floats from 0 to 255.

        Args:
            positions: theirs in the global batch.
            values: brings what is drawn for them to their device.
        Raises: ConfigError for a function that fails, or returns something else than such images.
        """
        augmented = torch.empty_like(images, dtype=torch.float32)
        num_parts = max(1, sum(position < self._num_microbatches for position in positions))
        for i in range(num_parts):
            part = images[i::num_parts].to(torch.float32, memory_format=torch.contiguous_format) / 255
            for registered, augment in self._augmentations:
                purpose = f"augmentation {registered.name}"
                seed_torch(images.device, self._seed, purpose, step, positions[i])
                draws = Draws(self._seed, purpose, step, positions[i::num_parts], images.device, values)
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
            top, left, side, hole_y, hole_x = batch.uniforms(self._seed, "augmentation", step, 5).unbind(1)
        if config.crop_padding:
            images = random_crop(images, config.crop_padding, top, left, config.padding)
        if config.flip:
            images = mirrored(images, side < 0.5)
        if config.alternating_flip:
            images = mirrored(images, self._alternates(batch, step))
        if self._own:
            images = self._own(images, batch.positions, step, batch.values)
        images = self._normalise(images)
        if config.resolution:
            images = scaled(images, config.resolution)
        if config.cutout:
            images = cutout(images, config.cutout, hole_y, hole_x)
        if config.mixes:
            return self._mix(images, batch, step)
        return LabelledImages(images, batch.labels, batch.labels)

    def _alternates(self, batch: Batch, step: int) -> torch.Tensor:
        """Which samples (b,) are mirrored: those drawn for the first epoch in even ones, the others in odd ones."""
        assert self._epochs is not None
        self._first_flip = self._first_flip.to(batch.ids.device)
        epochs, positions = self._epochs, batch.positions
        is_odd = batch.values.tensor(
            ("odd epochs", None), step, lambda step: epochs.of(step, positions) % 2 == 1, batch.ids.device
        )
        return self._first_flip[batch.ids] ^ is_odd

    def is_mixup(self, step: int) -> bool:
        """Whether a step that mixes is one of mixup, not of cutmix."""
        if self._config.mixup > 0 and self._config.cutmix > 0:
            return bool(batch_generator(self._seed, "mixing", step).random() < 0.5)
        return self._config.mixup > 0

    def _mix(self, images: torch.Tensor, batch: Batch, step: int) -> LabelledImages:
        """Combines each sample with the one half a batch further on, which is in the same microbatch."""
        height, width = images.shape[-2:]
        weight, rest, *box = batch.values.numbers(
            ("mixing", (height, width)), step, lambda step: self._mixing(step, height, width), images.device
        )
        half = len(images) // 2
        others, other_labels = images.roll(half, 0), batch.labels.roll(half, 0)
        if self.is_mixup(step):
            images = torch.lerp(others, images, weight)
        else:
            _paste(images, others, box)
        return LabelledImages(images, batch.labels, other_labels, weight, rest)

    def _mixing(self, step: int, height: int, width: int) -> tuple[float, ...]:
        """The weight of a step's own labels, what it leaves to the others, and where the box that is pasted begins and
        ends: first rows, then columns."""
        is_mixup, generator = self.is_mixup(step), batch_generator(self._seed, "mixing", step)
        if self._config.mixup > 0 and self._config.cutmix > 0:
            generator.random()  # what `is_mixup` has drawn
        alpha = self._config.mixup if is_mixup else self._config.cutmix
        weight = float(generator.beta(alpha, alpha))
        if is_mixup:
            return weight, 1 - weight, 0, 0, 0, 0
        side = (1 - weight) ** 0.5
        top, bottom = _interval(float(generator.random()), side * height, height)
        left, right = _interval(float(generator.random()), side * width, width)
        weight = 1 - (bottom - top) * (right - left) / (height * width)
        return weight, 1 - weight, top, bottom, left, right


def _paste(images: torch.Tensor, others: torch.Tensor, box: Sequence[Number]) -> None:
    """Sets a box of the images (b, 3, H, W) to that of others; it begins and ends at rows, then columns."""
    top, bottom, left, right = box
    if not isinstance(top, torch.Tensor):
        rows, columns = slice(int(top), int(bottom)), slice(int(left), int(right))
        images[..., rows, columns] = others[..., rows, columns]
        return
    y, x = (torch.arange(size, device=images.device) for size in images.shape[-2:])
    inside = ((y >= top) & (y < bottom)).unsqueeze(1) & (x >= left) & (x < right)  # (H, W)
    torch.where(inside, others, images, out=images)


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


def _interval(centre: float, length: float, size: int) -> tuple[int, int]:
    """The first of the pixels of an interval around a random one, and the one after the last; clipped at the border."""
    middle = int(centre * size)
    return max(0, round(middle - length / 2)), min(size, round(middle + length / 2))

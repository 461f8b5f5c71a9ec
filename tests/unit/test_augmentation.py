"""Augmentation: each kind against a loop over samples, and the same for any split of the batch."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from cifarscale.config.load import parse_recipe
from cifarscale.config.registry import networks, register_augmentation, registering
from cifarscale.data.batches import Batch
from cifarscale.data.normalisation import Normalisation
from cifarscale.data.order import rank_positions
from cifarscale.distributed.randomness import Draws
from cifarscale.distributed.ranks import Ranks
from cifarscale.distributed.tree import shares
from cifarscale.errors import ConfigError
from cifarscale.tasks.classifier.augmentation import (
    Augmentation,
    Epochs,
    LabelledImages,
    OwnAugmentations,
    cutout,
    random_crop,
)
from cifarscale.tasks.classifier.recipe import AugmentationConfig, classifier_recipe

MEAN, STD = (0.51, 0.49, 0.44), (0.27, 0.26, 0.28)
NORMALISE = Normalisation(MEAN, STD, "cpu")
SEED, SIZE = 7, 48
ALMOST_ONE = 1 - 2**-24
"""The largest number that is drawn."""

CONFIGS = {
    "off": AugmentationConfig(),
    "crop": AugmentationConfig(crop_padding=4),
    "reflected crop": AugmentationConfig(crop_padding=4, padding="reflect"),
    "flip": AugmentationConfig(flip=True),
    "alternating flip": AugmentationConfig(alternating_flip=True),
    "cutout": AugmentationConfig(cutout=8),
    "mixup": AugmentationConfig(mixup=0.4),
    "cutmix": AugmentationConfig(cutmix=1.0),
    "scaled": AugmentationConfig(crop_padding=4, resolution=24),
    "all": AugmentationConfig(crop_padding=4, flip=True, cutout=8, mixup=0.4, cutmix=1.0),
}


def random_batch(size: int = SIZE) -> Batch:
    """Noise with a label of its own for each sample, channels last as the readers deliver it."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (size, 32, 32, 3), dtype=torch.uint8, generator=generator).permute(0, 3, 1, 2)
    return Batch(images, torch.arange(size), torch.arange(size) + 1000, range(size))


def share(batch: Batch, rank: int, world_size: int) -> Batch:
    """What a rank gets of a global batch."""
    take = slice(rank, None, world_size)
    images = batch.images.permute(0, 2, 3, 1)[take].contiguous().permute(0, 3, 1, 2)
    return Batch(images, batch.labels[take], batch.ids[take], batch.positions[take])


def augment(config: AugmentationConfig, batch: Batch, step: int = 3, seed: int = SEED) -> LabelledImages:
    return Augmentation(config, NORMALISE, seed, Epochs(SIZE, 1000 + SIZE, SIZE))(batch, step)


def normalised(images: Tensor) -> Tensor:
    """In double precision, by the definition."""
    mean, std = (torch.tensor(values, dtype=torch.float64).view(3, 1, 1) for values in (MEAN, STD))
    return (images.double() / 255 - mean) / std


def same(a: LabelledImages, b: LabelledImages) -> bool:
    """To the last bit."""
    pairs = ((a.images, b.images), (a.labels, b.labels), (a.others, b.others))
    return all(torch.equal(x, y) for x, y in pairs) and a.weight == b.weight


# Properties of all


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_augmented_images_are_float32_channels_last_and_the_batch_is_left_alone(config: AugmentationConfig) -> None:
    batch = random_batch()
    before = batch.images.clone(), batch.labels.clone()
    result = augment(config, batch)
    side = config.resolution or 32
    assert (result.images.dtype, result.images.shape) == (torch.float32, (SIZE, 3, side, side))
    assert result.images.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(result.labels, before[1])
    assert torch.equal(batch.images, before[0])
    assert torch.equal(batch.labels, before[1])


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("world_size", [2, 3, 4, 8])
def test_any_number_of_ranks_gives_the_same_images(config: AugmentationConfig, world_size: int) -> None:
    """To the last bit, over several steps: with both mixup and cutmix among them."""
    batch = random_batch()
    for step in range(8):
        whole = augment(config, batch, step)
        for rank in range(world_size):
            part = augment(config, share(batch, rank, world_size), step)
            assert same(part, whole.part(rank, world_size))


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_augmentation_is_a_function_of_seed_and_step(config: AugmentationConfig) -> None:
    batch = random_batch()
    first = augment(config, batch)
    assert same(augment(config, batch), first)
    if config == CONFIGS["alternating flip"]:  # of seed and epoch
        assert torch.equal(augment(config, batch, step=5).images, first.images)
    if config != CONFIGS["off"]:
        assert not torch.equal(augment(config, batch, step=4).images, first.images)
        assert not torch.equal(augment(config, batch, seed=SEED + 1).images, first.images)


def test_a_sample_keeps_what_it_got_when_another_kind_is_switched_on() -> None:
    batch = random_batch()
    flipped = augment(AugmentationConfig(flip=True), batch).images
    both = augment(AugmentationConfig(flip=True, cutout=8), batch).images
    assert torch.equal(torch.where(both == 0, flipped, both), flipped)


def test_parts_interleave() -> None:
    whole = augment(CONFIGS["mixup"], random_batch())
    for parts in (1, 2, 3, 4):
        for i in range(parts):
            part = whole.part(i, parts)
            assert torch.equal(part.images, whole.images[i::parts])
            assert torch.equal(part.labels, whole.labels[i::parts])
            assert torch.equal(part.others, whole.others[i::parts])
            assert part.weight == whole.weight


# Normalisation


def test_everything_off_gives_plain_normalised_images() -> None:
    batch = random_batch()
    result = augment(AugmentationConfig(), batch)
    torch.testing.assert_close(result.images.double(), normalised(batch.images), rtol=0, atol=2e-6)
    assert torch.equal(result.others, batch.labels)
    assert result.weight == 1


def test_the_training_split_is_normalised_to_mean_0_and_deviation_1() -> None:
    images = random_batch(200).images
    floats = images.double().div(255).transpose(0, 1).flatten(1)
    mean, std = tuple(floats.mean(1).tolist()), tuple(floats.std(1).tolist())
    result = Normalisation(mean, std, "cpu")(images).transpose(0, 1).flatten(1)
    torch.testing.assert_close(result.mean(1), torch.zeros(3), rtol=0, atol=1e-4)
    torch.testing.assert_close(result.std(1), torch.ones(3), rtol=0, atol=1e-4)


# Crop and flip


@pytest.mark.parametrize("border", ["black", "reflect"])
@pytest.mark.parametrize("padding", [1, 2, 4, 8, 16])
def test_a_crop_is_a_slice_of_the_padded_image(padding: int, border: Any) -> None:
    images = random_batch().images
    generator = np.random.default_rng(padding)
    top, left = generator.random((2, SIZE), np.float32)
    top[:4], left[:4] = (0, 0, ALMOST_ONE, ALMOST_ONE), (0, ALMOST_ONE, 0, ALMOST_ONE)
    result = random_crop(images, padding, torch.tensor(top), torch.tensor(left), border)
    assert result.is_contiguous(memory_format=torch.channels_last)
    for i, image in enumerate(images.permute(0, 2, 3, 1).numpy()):
        mode: Any = "constant" if border == "black" else "reflect"
        padded = np.pad(image, ((padding, padding), (padding, padding), (0, 0)), mode)
        y, x = int(float(top[i]) * (2 * padding + 1)), int(float(left[i]) * (2 * padding + 1))
        np.testing.assert_array_equal(result[i].permute(1, 2, 0), padded[y : y + 32, x : x + 32])


def test_a_crop_in_the_middle_is_the_image() -> None:
    images, half = random_batch().images, torch.full((SIZE,), 0.5)
    assert torch.equal(random_crop(images, 4, half, half), images)


def test_crops_reach_every_place_about_equally_often() -> None:
    """The brightest pixel tells where the crop was cut."""
    images = torch.zeros(4000, 3, 32, 32, dtype=torch.uint8).to(memory_format=torch.channels_last)
    images[:, :, 16, 16] = 255
    labels = torch.zeros(4000, dtype=torch.int64)
    result = augment(AugmentationConfig(crop_padding=2), Batch(images, labels, labels, range(4000)))
    places = result.images[:, 0].flatten(1).argmax(1)
    found, counts = places.unique(return_counts=True)
    assert found.tolist() == [y * 32 + x for y in range(14, 19) for x in range(14, 19)]
    assert counts.min() > 100  # 160 expected, with a deviation of 12
    assert counts.max() < 220


def test_an_alternating_flip_shows_each_image_both_ways_in_two_epochs() -> None:
    """Whatever the order of an epoch, and where batches straddle two of them."""
    batch, config = random_batch(), AugmentationConfig(alternating_flip=True)
    plain = normalised(batch.images)
    order = torch.cat([torch.randperm(SIZE, generator=torch.Generator().manual_seed(i)) for i in range(6)])
    augmentation = Augmentation(config, NORMALISE, SEED, Epochs(SIZE, 1000 + SIZE, 32))
    seen: list[list[bool]] = [[] for _ in range(SIZE)]
    for step, rows in enumerate(order.split(32)):
        result = augmentation(Batch(batch.images[rows], batch.labels[rows], batch.ids[rows], range(32)), step)
        for row, image in zip(rows.tolist(), result.images.double(), strict=True):
            mirrored = torch.allclose(image, plain[row].flip(-1), rtol=0, atol=1e-5)
            assert mirrored != torch.allclose(image, plain[row], rtol=0, atol=1e-5)
            seen[row].append(mirrored)
    assert {tuple(flips) for flips in seen} == {(True, False) * 3, (False, True) * 3}
    assert 12 < sum(flips[0] for flips in seen) < 36


@pytest.mark.parametrize("resolution", [16, 24, 40])
def test_another_resolution_is_the_image_scaled(resolution: int) -> None:
    batch = random_batch(4)
    result = augment(AugmentationConfig(resolution=resolution), batch).images
    assert result.is_contiguous(memory_format=torch.channels_last)
    for image, plain in zip(result, normalised(batch.images), strict=True):
        expected = functional.interpolate(plain[None], (resolution, resolution), mode="bilinear", antialias=True)[0]
        torch.testing.assert_close(image.double(), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"flip": True, "alternating_flip": True}, "two ways to flip: choose one"),
        ({"padding": "reflect"}, "augmentation.padding = 'reflect' needs augmentation.crop_padding above 0"),
    ],
)
def test_what_contradicts_or_has_no_effect_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_recipe({"task": "classifier", "augmentation": values}, "test")


def test_half_of_the_images_are_mirrored_and_the_others_are_not() -> None:
    batch = random_batch(1000)
    plain, result = augment(AugmentationConfig(), batch).images, augment(AugmentationConfig(flip=True), batch).images
    mirrored = (result == plain.flip(-1)).flatten(1).all(1)
    straight = (result == plain).flatten(1).all(1)
    assert (mirrored ^ straight).all()
    assert 430 < mirrored.sum() < 570


# Cutout


def reference_cutout(images: Tensor, side: int, centre_y: Tensor, centre_x: Tensor) -> Tensor:
    """As it was published: a square around a pixel, as much of it as lies within the image."""
    result = images.clone()
    for i in range(len(images)):
        y, x = int(float(centre_y[i]) * 32) - side // 2, int(float(centre_x[i]) * 32) - side // 2
        result[i, :, max(0, y) : max(0, y + side), max(0, x) : max(0, x + side)] = 0
    return result


@pytest.mark.parametrize("side", [1, 2, 7, 8, 16, 31, 32])
def test_cutout_blanks_a_square(side: int) -> None:
    images = torch.randn(SIZE, 3, 32, 32).to(memory_format=torch.channels_last)
    y, x = torch.rand(2, SIZE, generator=torch.Generator().manual_seed(side))
    y[:4], x[:4] = torch.tensor([0, 0, ALMOST_ONE, ALMOST_ONE]), torch.tensor([0, ALMOST_ONE, 0, ALMOST_ONE])
    y[4], x[4] = 0.5, 0.5
    expected = reference_cutout(images, side, y, x)
    assert torch.equal(cutout(images.clone(), side, y, x), expected)
    assert (expected[4, 0] == 0).sum() == side**2


def test_cutout_blanks_to_the_mean_and_less_only_at_the_border() -> None:
    """After normalisation the mean is 0; all channels of a pixel go."""
    batch = random_batch(1000)
    blank = augment(AugmentationConfig(cutout=8), batch).images == 0
    assert torch.equal(blank.all(1), blank.any(1))
    areas = blank[:, 0].flatten(1).sum(1)
    assert areas.max() == 64
    assert areas.min() >= 16
    assert 0.45 < (areas == 64).float().mean() < 0.75  # (25 / 32)² = 0.61 expected


# Mixing


def mixed(config: AugmentationConfig, num_steps: int) -> list[LabelledImages]:
    batch = random_batch()
    return [augment(config, batch, step) for step in range(num_steps)]


def plain() -> Tensor:
    return augment(AugmentationConfig(), random_batch()).images


@pytest.mark.parametrize("kind", ["mixup", "cutmix", "all"])
@pytest.mark.parametrize("microbatches", [1, 2, 4, 8])
def test_the_partner_is_half_a_microbatch_away(kind: str, microbatches: int) -> None:
    """So a microbatch needs no samples but its own, whichever rank computes it."""
    whole = augment(CONFIGS[kind], random_batch())
    for i in range(microbatches):
        part = whole.part(i, microbatches)
        assert torch.equal(part.others, part.labels.roll(len(part.labels) // 2))
        assert (part.others != part.labels).all()


def test_mixup_is_the_weighted_sum_of_a_sample_and_its_partner() -> None:
    images = plain().double()
    for result in mixed(CONFIGS["mixup"], 10):
        expected = result.weight * images + (1 - result.weight) * images[result.others]
        torch.testing.assert_close(result.images.double(), expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize("alpha", [0.2, 1.0, 5.0])
def test_the_weights_of_mixup_follow_the_beta_distribution(alpha: float) -> None:
    batch = random_batch(2)
    augmentation = Augmentation(AugmentationConfig(mixup=alpha), NORMALISE, SEED)
    weights = np.array([augmentation(batch, step).weight for step in range(1000)])
    assert weights.min() >= 0
    assert weights.max() <= 1
    variance = 1 / (4 * (2 * alpha + 1))
    assert abs(weights.mean() - 0.5) < 4 * (variance / 1000) ** 0.5
    assert abs(weights.var() / variance - 1) < 0.2


def pasted(result: LabelledImages, images: Tensor) -> Tensor:
    """Which pixels come from the partner, (b, H, W), after seeing that the others are the sample's own."""
    from_partner = (result.images == images[result.others]).all(1)
    own = (result.images == images).all(1)
    assert (from_partner ^ own).all()
    return from_partner


def test_cutmix_pastes_one_box_of_the_partner_and_weighs_it_by_its_area() -> None:
    images = plain()
    for result in mixed(CONFIGS["cutmix"], 40):
        boxes = pasted(result, images)
        assert (boxes == boxes[0]).all()
        rows, columns = boxes[0].any(1), boxes[0].any(0)
        assert torch.equal(boxes[0], rows.unsqueeze(1) & columns.unsqueeze(0))
        assert all((line.int().diff() != 0).sum() <= 2 for line in (rows, columns))
        assert result.weight == pytest.approx(1 - float(boxes[0].float().mean()), abs=1e-12)


def test_cutmix_pastes_boxes_of_all_sizes_everywhere() -> None:
    images = plain()
    covered = torch.zeros(32, 32)
    areas = []
    for result in mixed(CONFIGS["cutmix"], 400):
        box = pasted(result, images)[0].float()
        covered += box
        areas.append(float(box.mean()))
    assert covered.min() > 10
    assert min(areas) < 0.05
    assert max(areas) > 0.75
    assert np.mean(areas) < 0.5  # boxes are clipped at the border


def test_with_both_a_step_draws_one_about_equally_often() -> None:
    images = plain()

    def is_cutmix(result: LabelledImages) -> bool:
        own, partner = result.images == images, result.images == images[result.others]
        return bool((own | partner).all())

    drawn = [is_cutmix(result) for result in mixed(AugmentationConfig(mixup=1.0, cutmix=1.0), 200)]
    assert 70 < sum(drawn) < 130


@pytest.mark.parametrize(
    ("config", "uses"), [(CONFIGS["mixup"], False), (CONFIGS["cutmix"], True)], ids=["mixup", "cutmix"]
)
def test_with_one_every_step_uses_it(config: AugmentationConfig, uses: bool) -> None:
    images = plain()
    for result in mixed(config, 30):
        blended = (result.images != images) & (result.images != images[result.others])
        assert bool(blended.any()) == (not uses)


# One's own

OWN = "own augmentations of this file"
"""In the place of a digest of code."""
with registering(OWN):

    @register_augmentation("noisy")
    def noisy(images: Tensor, draws: Draws, amount: float = 0.1) -> Tensor:
        return images + amount * draws.normal("noise", 3, 1, 1)

    @register_augmentation("torch_s_own_draws")
    class OfTorch:
        def __init__(self, amount: float = 0.5) -> None:
            self.amount = amount

        def __call__(self, images: Tensor) -> Tensor:
            return images * (torch.rand(len(images), 1, 1, 1) < self.amount)

    @register_augmentation("of_the_batch")
    class OfTheBatch(torch.nn.Module):
        """Which a microbatch is to it."""

        def forward(self, images: Tensor, draws: Draws) -> Tensor:
            return images - images.mean() * draws.uniform("share", 1, 1, 1)


def own(*names: str, microbatches: int = 8) -> Augmentation:
    recipe = classifier_recipe(tuple(networks(OWN).values()), False).model_validate(
        {"code": OWN, "augmentation": {"own": {name: {} for name in names}, "flip": True}}
    )
    training = recipe.training.model_copy(update={"microbatches": microbatches})
    made = OwnAugmentations(recipe.model_copy(update={"training": training, "seed": SEED}))
    return Augmentation(recipe.augmentation, NORMALISE, SEED, own=made)


@pytest.mark.parametrize("names", [("noisy",), ("torch_s_own_draws",), ("of_the_batch",), ("of_the_batch", "noisy")])
@pytest.mark.parametrize("world_size", [2, 4, 8])
def test_ones_own_are_the_same_on_any_number_of_ranks(names: tuple[str, ...], world_size: int) -> None:
    augment, batch = own(*names), random_batch()
    for step in range(3):
        whole = augment(batch, step)
        for rank in range(world_size):
            assert same(augment(share(batch, rank, world_size), step), whole.part(rank, world_size))
    assert not torch.equal(augment(batch, 0).images, augment(batch, 1).images)


def test_ones_own_are_the_same_in_uneven_shares() -> None:
    augment, batch = own("of_the_batch", "torch_s_own_draws"), random_batch()
    whole = augment(batch, 0)
    for rank, numbers in enumerate(shares(8, 3)):
        positions = list(rank_positions(48, 8, Ranks(rank, 3)))
        mine = Batch(batch.images[positions], batch.labels[positions], batch.ids[positions], positions)
        augmented = augment(mine, 0)
        for i, number in enumerate(numbers):
            assert same(augmented.part(i, len(numbers)), whole.part(number, 8))


def test_ones_own_come_in_their_order_after_the_flip() -> None:
    batch = random_batch()
    flipped = augment(AugmentationConfig(flip=True), batch).images
    assert torch.allclose(own()(batch, 3).images, flipped, atol=1e-5)
    there, back = own("noisy", "of_the_batch")(batch, 3).images, own("of_the_batch", "noisy")(batch, 3).images
    assert not torch.allclose(there, back, atol=1e-3)
    assert there.is_contiguous(memory_format=torch.channels_last)

"""What a discriminator sees: each augmentation against the paper's, image by image, and the way back to the pixels."""

from itertools import product

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from cifarscale.tasks.gan.differentiable_augmentation import (
    NUM_DRAWS,
    augment,
    augments,
    blank,
    change_colours,
    translate,
)
from cifarscale.tasks.gan.recipe import GanAugmentationConfig

Image = NDArray[np.float64]
SIZE = 8
ALMOST_ONE = 1 - 2**-24
"""The largest number that is drawn."""
ALL = GanAugmentationConfig(colour=True, translation=0.125, cutout=0.5)
CONFIGS = {
    "colour": GanAugmentationConfig(colour=True),
    "translation": GanAugmentationConfig(translation=0.25),
    "cutout": GanAugmentationConfig(cutout=0.3),
    "all": ALL,
}
FRACTIONS = (0.01, 0.125, 0.3, 0.5, 1.0)


def seeded(seed: int = 1) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def some_images(count: int = 40, height: int = SIZE, width: int = SIZE) -> Tensor:
    return torch.rand(count, 3, height, width, generator=seeded()) * 2 - 1


def some_draws(count: int = 40) -> Tensor:
    """With both ends of what is drawn among them."""
    draws = torch.rand(count, NUM_DRAWS, generator=seeded(2))
    draws[0], draws[1] = 0.0, ALMOST_ONE
    return draws


def evenly(count: int) -> Tensor:
    """Draws in the middles of as many equal parts of [0, 1)."""
    return (torch.arange(count) + 0.5) / count


# The paper's, an image at a time


def integer(draw: float, count: int) -> int:
    """One of 0 … count - 1, where the paper's code has `randint`."""
    return int(draw * count)


def coloured(image: Image, brightness: float, saturation: float, contrast: float) -> Image:
    image = image + (brightness - 0.5)
    grey = image.mean(0, keepdims=True)
    image = (image - grey) * (saturation * 2) + grey
    return (image - image.mean()) * (contrast + 0.5) + image.mean()


def shifted(image: Image, fraction: float, draw_y: float, draw_x: float) -> Image:
    _, height, width = image.shape
    most_y, most_x = int(height * fraction + 0.5), int(width * fraction + 0.5)
    down, right = integer(draw_y, 2 * most_y + 1) - most_y, integer(draw_x, 2 * most_x + 1) - most_x
    result = np.zeros_like(image)
    for y, x in product(range(height), range(width)):
        if 0 <= y + down < height and 0 <= x + right < width:
            result[:, y, x] = image[:, y + down, x + right]
    return result


def holed(image: Image, fraction: float, draw_y: float, draw_x: float) -> Image:
    _, height, width = image.shape
    side_y, side_x = int(height * fraction + 0.5), int(width * fraction + 0.5)
    offset_y = integer(draw_y, height + (1 - side_y % 2))
    offset_x = integer(draw_x, width + (1 - side_x % 2))
    result = image.copy()
    for y, x in product(range(side_y), range(side_x)):
        row = min(max(y + offset_y - side_y // 2, 0), height - 1)
        column = min(max(x + offset_x - side_x // 2, 0), width - 1)
        result[:, row, column] = 0
    return result


def as_in_the_paper(images: Tensor, config: GanAugmentationConfig, draws: Tensor) -> Tensor:
    results = []
    for image, drawn in zip(images.double().numpy(), draws.tolist(), strict=True):
        if config.colour:
            image = coloured(image, *drawn[:3])
        if config.translation:
            image = shifted(image, config.translation, *drawn[3:5])
        if config.cutout:
            image = holed(image, config.cutout, *drawn[5:])
        results.append(image)
    return torch.from_numpy(np.stack(results))


@pytest.mark.parametrize("name", CONFIGS)
def test_equals_the_papers_image_by_image(name: str) -> None:
    images, draws = some_images(), some_draws()
    expected = as_in_the_paper(images, CONFIGS[name], draws)
    torch.testing.assert_close(augment(images, CONFIGS[name], draws).double(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("fraction", FRACTIONS)
def test_shifts_and_holes_of_any_size_equal_the_papers(fraction: float) -> None:
    """To the last bit; in images that are not square, so that rows cannot pass for columns."""
    images, draws = some_images(height=6, width=9), some_draws()
    for config in (GanAugmentationConfig(translation=fraction), GanAugmentationConfig(cutout=fraction)):
        assert torch.equal(augment(images, config, draws).double(), as_in_the_paper(images, config, draws))


# None


def test_off_leaves_the_images() -> None:
    images = some_images()
    for config in (GanAugmentationConfig(), GanAugmentationConfig(flip=True)):
        assert not augments(config)
        assert torch.equal(augment(images, config, some_draws()), images)
    assert all(augments(config) for config in CONFIGS.values())


def test_the_middle_draw_changes_no_colour_and_shifts_nothing() -> None:
    images = some_images()
    middle = torch.full((len(images),), 0.5)
    torch.testing.assert_close(change_colours(images, middle, middle, middle), images, rtol=0, atol=1e-6)
    assert torch.equal(translate(images, 0.25, middle, middle), images)


def test_less_than_half_a_pixel_is_nothing() -> None:
    images, draws = some_images(), some_draws()
    small = GanAugmentationConfig(translation=0.06, cutout=0.06)
    assert torch.equal(augment(images, small, draws), images)


# Ranges


def test_colours_change_as_far_as_the_paper_has_it() -> None:
    image = some_images(1)
    middle, ends = torch.tensor([0.5]), {0.0: torch.tensor([0.0]), 1.0: torch.tensor([1.0])}
    for end, draw in ends.items():
        brightness = change_colours(image, draw, middle, middle) - image
        torch.testing.assert_close(brightness, torch.full_like(image, end - 0.5))
        grey = image.mean(1, keepdim=True)
        torch.testing.assert_close(change_colours(image, middle, draw, middle) - grey, (image - grey) * 2 * end)
        mean = image.mean()
        torch.testing.assert_close(change_colours(image, middle, middle, draw) - mean, (image - mean) * (end + 0.5))


@pytest.mark.parametrize("fraction", FRACTIONS)
def test_every_shift_up_to_the_largest_is_as_likely(fraction: float) -> None:
    most = int(32 * fraction + 0.5)
    draws = evenly(3 * (2 * most + 1))
    position = torch.arange(1.0, 33).view(1, 1, 32, 1).expand(len(draws), 3, 32, 32)
    rows = translate(position, fraction, draws, torch.full_like(draws, 0.5))
    assert torch.equal(translate(position.mT, fraction, torch.full_like(draws, 0.5), draws), rows.mT)
    for i, row in enumerate(rows[:, 0, :, 0]):
        shift = i // 3 - most
        assert torch.equal(row, torch.tensor([y + shift + 1.0 if 0 <= y + shift < 32 else 0.0 for y in range(32)]))
    ends = torch.tensor([0.0, ALMOST_ONE])
    assert torch.equal(translate(position[:2], fraction, ends, evenly(1).expand(2)), rows[[0, -1]])


@pytest.mark.parametrize("fraction", FRACTIONS)
def test_every_place_of_a_hole_is_as_likely(fraction: float) -> None:
    side = int(32 * fraction + 0.5)
    places = 33 - side % 2
    draws = evenly(3 * places)
    ones = torch.ones(len(draws), 3, 32, 32)
    middle = torch.full_like(draws, 0.5)
    holes = blank(ones, fraction, draws, middle) == 0
    assert torch.equal(blank(ones, fraction, middle, draws) == 0, holes.mT)
    columns = int(holes.any(2)[0, 0].sum())
    assert columns == side  # in the middle nothing is cut off
    for i, hole in enumerate(holes[:, 0]):
        first = i // 3 - side // 2
        rows = [first <= y < first + side for y in range(32)]
        assert hole.any(1).tolist() == [row and side > 0 for row in rows]
        assert int(hole.sum()) == sum(rows) * columns
    assert side == 0 or holes.flatten(1).any(1).all()  # no hole misses the image
    ends = torch.tensor([0.0, ALMOST_ONE])
    assert torch.equal(blank(ones[:2], fraction, ends, middle[:2]) == 0, holes[[0, -1]])


def test_what_comes_in_and_what_is_cut_out_is_grey_whatever_the_brightness() -> None:
    dark = torch.full((40, 3, 32, 32), -1.0)
    alone = augment(dark, ALL.model_copy(update={"colour": False}), some_draws()) == 0
    assert alone.flatten(1).any(1).all()
    assert torch.equal(augment(dark, ALL, some_draws())[alone], torch.zeros(int(alone.sum())))


def test_one_augmentation_does_not_move_another() -> None:
    """Each has draws of its own: outside the hole the shift is the same with cutout and without."""
    images, draws = some_images(), some_draws()
    both = augment(images, GanAugmentationConfig(translation=0.25, cutout=0.5), draws)
    shift = augment(images, GanAugmentationConfig(translation=0.25), draws)
    hole = augment(torch.ones_like(images), GanAugmentationConfig(cutout=0.5), draws) == 0
    assert torch.equal(both, shift.masked_fill(hole, 0))


# Gradients


@pytest.mark.parametrize("fraction", FRACTIONS)
def test_the_gradient_of_a_shift_is_the_shift_back(fraction: float) -> None:
    count = 2 * int(SIZE * fraction + 0.5) + 1
    draw_y, draw_x = (each.flatten() for each in torch.meshgrid(evenly(count), evenly(count), indexing="ij"))
    images, upstream = some_images(count**2).requires_grad_(), some_images(count**2).flip(0)
    (gradient,) = torch.autograd.grad((translate(images, fraction, draw_y, draw_x) * upstream).sum(), images)
    assert torch.equal(gradient, translate(upstream, fraction, 1 - draw_y, 1 - draw_x))


def test_no_gradient_comes_through_a_hole_and_all_of_it_beside() -> None:
    images, upstream = some_images().requires_grad_(), some_images().flip(0)
    draws = some_draws()[:, 5:].unbind(1)
    (gradient,) = torch.autograd.grad((blank(images, 0.5, *draws) * upstream).sum(), images)
    assert torch.equal(gradient, blank(upstream, 0.5, *draws))


def test_the_gradient_of_colours_is_that_of_finite_differences() -> None:
    images = some_images(3, 2, 3).double().requires_grad_()
    draws = some_draws(3)[:, :3].double().unbind(1)
    assert torch.autograd.gradcheck(lambda x: change_colours(x, *draws), (images,))
    assert torch.autograd.gradgradcheck(lambda x: change_colours(x, *draws), (images,))


def test_all_together_are_affine_with_the_gradient_of_that() -> None:
    """f(x + d) - f(x) = J d for any d, so the gradient is right if <J d, g> = <d, J^T g>."""
    images, draws = some_images().requires_grad_(), some_draws()
    step, upstream = some_images().flip(0), some_images().flip(2)
    augmented = augment(images, ALL, draws)
    (gradient,) = torch.autograd.grad(augmented, images, upstream)
    moved = augment(images.detach() + step, ALL, draws) - augmented.detach()
    torch.testing.assert_close(
        (moved * upstream).sum((1, 2, 3)), (gradient * step).sum((1, 2, 3)), rtol=1e-4, atol=1e-4
    )


# Each image by itself


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("name", CONFIGS)
def test_an_images_bits_and_its_gradients_depend_on_it_and_its_draws_alone(
    name: str, memory_format: torch.memory_format
) -> None:
    def computed(rows: slice) -> tuple[Tensor, Tensor]:
        part = images[rows].to(memory_format=memory_format).requires_grad_()
        augmented = augment(part, CONFIGS[name], draws[rows])
        return augmented.detach(), torch.autograd.grad((augmented * upstream[rows]).sum(), part)[0]

    images, draws, upstream = some_images(24, 32, 32), some_draws(24), some_images(24, 32, 32).flip(0)
    whole = computed(slice(None))
    for parts in (1, 2, 3, 24):
        for rows in (slice(i, None, parts) for i in range(parts)):
            for part, expected in zip(computed(rows), whole, strict=True):
                assert torch.equal(part, expected[rows])


@pytest.mark.parametrize("name", CONFIGS)
def test_other_draws_give_other_images(name: str) -> None:
    images, draws = some_images(1, 32, 32), torch.rand(30, NUM_DRAWS, generator=seeded())
    augmented = augment(images.expand(30, -1, -1, -1), CONFIGS[name], draws)
    assert len({image.numpy().tobytes() for image in augmented}) > 20


# Mixed precision


@pytest.mark.parametrize("name", CONFIGS)
def test_autocast_rounds_nothing(name: str) -> None:
    images, draws = some_images(8, 32, 32), some_draws(8)
    expected = augment(images, CONFIGS[name], draws)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(augment(images, CONFIGS[name], draws), expected)


def test_images_in_half_precision_are_augmented_in_float32() -> None:
    images, draws = some_images().bfloat16(), some_draws()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        augmented = augment(images, ALL, draws)
    assert augmented.dtype == torch.float32
    assert torch.equal(augmented, augment(images.float(), ALL, draws))

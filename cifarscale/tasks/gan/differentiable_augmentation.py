"""Augmentation of whatever a discriminator sees, real or generated; the gradient passes through it to the generator.

Source: Zhao et al. 2020 (arXiv 2006.10738), "Differentiable Augmentation for Data-Efficient GAN Training".
"""

import torch
from torch import Tensor

from cifarscale.tasks.gan.recipe import GanAugmentationConfig

NUM_DRAWS = 7
"""Uniform numbers in [0, 1) that each image needs, whichever of the augmentations are on."""


def augments(config: GanAugmentationConfig) -> bool:
    """Whether any differentiable augmentation is on."""
    return config.colour or config.translation > 0 or config.cutout > 0


def augment(images: Tensor, config: GanAugmentationConfig, draws: Tensor) -> Tensor:
    """Images (b, 3, H, W) in [-1, 1] with colours changed, shifted, and partly blanked to 0, as far as wanted.

    In float32 whatever autocast says: a shift must not round the pixels.

    Args:
        draws: (b, NUM_DRAWS) in [0, 1).
    """
    with torch.autocast(images.device.type, enabled=False):
        images = images.float()
        brightness, saturation, contrast, shift_y, shift_x, hole_y, hole_x = draws.unbind(1)
        if config.colour:
            images = change_colours(images, brightness, saturation, contrast)
        if config.translation:
            images = translate(images, config.translation, shift_y, shift_x)
        if config.cutout:
            images = blank(images, config.cutout, hole_y, hole_x)
        return images


def change_colours(images: Tensor, brightness: Tensor, saturation: Tensor, contrast: Tensor) -> Tensor:
    """Adds -0.5 to 0.5; scales the distance from each pixel's grey by 0 to 2; from the image's mean by 0.5 to 1.5."""
    images = images + _per_image(brightness - 0.5)
    images = _scaled(images, images.mean(1, keepdim=True), saturation * 2)
    return _scaled(images, images.mean((1, 2, 3), keepdim=True), contrast + 0.5)


def translate(images: Tensor, fraction: float, shift_y: Tensor, shift_x: Tensor) -> Tensor:
    """Shifts by whole pixels, up to `fraction` of the side each way; 0, which is grey, comes in at the border.

    As products with shifted unit matrices, whose gradients are the same products again: deterministic on any device.
    """
    height, width = images.shape[2:]
    if height == width:
        rows, columns = _shifts(height, fraction, torch.stack((shift_y, shift_x))).unbind()  # (b, H, H) each
    else:
        rows, columns = _shifts(height, fraction, shift_y), _shifts(width, fraction, shift_x)
    return rows.unsqueeze(1) @ images @ columns.transpose(1, 2).unsqueeze(1)


def blank(images: Tensor, fraction: float, hole_y: Tensor, hole_x: Tensor) -> Tensor:
    """Sets a square of `fraction` of the side to 0, centred on any pixel or just beyond the border."""
    rows = _hole(images.shape[2], fraction, hole_y)
    columns = _hole(images.shape[3], fraction, hole_x)
    return images * (1 - rows.unsqueeze(2) * columns.unsqueeze(1)).unsqueeze(1)


def _shifts(size: int, fraction: float, draw: Tensor) -> Tensor:
    """For each number drawn a matrix (size, size) that takes pixel i from i + shift, or 0 where there is none."""
    most = int(size * fraction + 0.5)
    shift = (draw * (2 * most + 1)).floor() - most
    pixels = torch.arange(size, device=draw.device)
    return (pixels[:, None] + shift[..., None, None] == pixels).float()


def _hole(size: int, fraction: float, draw: Tensor) -> Tensor:
    """For each image 1 where the hole is along one side, (b, size)."""
    length = int(size * fraction + 0.5)
    first = (draw * (size + (1 - length % 2))).floor() - length // 2
    offset = torch.arange(size, device=draw.device) - first[:, None]
    return ((offset >= 0) & (offset < length)).float()


def _scaled(images: Tensor, centre: Tensor, factor: Tensor) -> Tensor:
    return (images - centre) * _per_image(factor) + centre


def _per_image(values: Tensor) -> Tensor:
    return values.view(-1, 1, 1, 1)

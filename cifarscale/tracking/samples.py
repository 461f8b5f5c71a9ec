"""Generated images for people: grids as PNG."""

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from cifarscale.runs.files import write_atomically

_GAP = 2


def to_uint8(images: torch.Tensor) -> torch.Tensor:
    """Images in [-1, 1] rounded to the nearest of 256 levels, as a PNG holds them."""
    return images.float().add(1).mul(127.5).round().clamp(0, 255).to(torch.uint8)


def save_grid(images: NDArray[np.uint8], columns: int, path: Path) -> None:
    """Saves images (n, H, W, 3) as one PNG, row by row with a gap between them."""
    count, height, width, _ = images.shape
    rows = -(-count // columns)
    grid = np.full((rows * (height + _GAP) + _GAP, columns * (width + _GAP) + _GAP, 3), 255, np.uint8)
    for i, image in enumerate(images):
        top, left = (
            _GAP + place * (size + _GAP) for place, size in zip(divmod(i, columns), (height, width), strict=True)
        )
        grid[top : top + height, left : left + width] = image
    write_atomically(path, lambda file: Image.fromarray(grid).save(file, "PNG"))

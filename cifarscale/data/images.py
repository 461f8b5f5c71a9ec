"""Sets of images to be measured: of a split, of a folder, or whatever else gives them by number."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError

from cifarscale.data.manifest import Manifest
from cifarscale.data.shards import read_split
from cifarscale.errors import DataError

EXTENSIONS = ("bmp", "jpg", "jpeg", "pgm", "png", "ppm", "tif", "tiff", "webp")
"""Of the files that are taken for images: those that pytorch-fid takes."""


@dataclass(frozen=True)
class ImageSet:
    """Images 0 … num_images - 1.

    Attributes:
        name: what results call the set.
        images: from a range of b numbers to those images, (b, 3, H, W) uint8; from any thread.
        labels: (num_images,) int64, None where classes are not known.
        identity: says exactly which images these are; empty where nothing does, and then nothing of them is cached.
    """

    name: str
    num_images: int
    images: Callable[[range], torch.Tensor]
    labels: torch.Tensor | None = None
    identity: str = ""


def images_of_split(folder: Path, manifest: Manifest, split: str, device: torch.device) -> ImageSet:
    """A whole split of a folder of shards. Raises: DataError if there is no such split, or a shard is damaged."""
    samples = read_split(folder, manifest, split)
    pixels = torch.tensor(samples.images, device=device)

    def images(rows: range) -> torch.Tensor:
        return pixels[rows.start : rows.stop].permute(0, 3, 1, 2)

    name, identity = f"{manifest.dataset} {split}", f"{manifest.fingerprint} {split}"
    return ImageSet(name, len(pixels), images, torch.tensor(samples.labels), identity)


def images_of_folder(folder: Path, device: torch.device) -> ImageSet:
    """All images that lie in a folder itself, by name; as RGB.

    Raises: DataError if there is none; and when they are read, if one cannot be, or is of another size than the first.
    """
    paths = sorted(path for path in folder.iterdir() if path.suffix[1:].lower() in EXTENSIONS)
    if not paths:
        raise DataError(f"{folder} holds no images; their names end in one of: {', '.join(EXTENSIONS)}")
    size = _open(paths[0]).shape[:2]

    def images(rows: range) -> torch.Tensor:
        pixels = [_open(path) for path in paths[rows.start : rows.stop]]
        for path, image in zip(paths[rows.start : rows.stop], pixels, strict=True):
            if image.shape[:2] != size:
                raise DataError(
                    f"{path} is {image.shape[1]} x {image.shape[0]}, and {paths[0].name} is {size[1]} x {size[0]}; "
                    "all images of a folder must have one size"
                )
        return torch.from_numpy(np.stack(pixels)).to(device).permute(0, 3, 1, 2)

    return ImageSet(str(folder), len(paths), images)


def _open(path: Path) -> np.ndarray:
    """An image file as (H, W, 3) uint8."""
    try:
        with Image.open(path) as image:
            return np.array(image.convert("RGB"))
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise DataError(f"cannot read {path} as an image: {str(error).splitlines()[0]}") from error

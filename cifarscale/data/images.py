"""Sets of images to be measured: of a split, of a folder, or whatever else gives them by number."""

import logging
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps

from cifarscale.data.manifest import Manifest
from cifarscale.data.shards import read_split
from cifarscale.data.source import size_text
from cifarscale.errors import DataError

log = logging.getLogger(__name__)

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
    """All images that lie in a folder itself, by name; as RGB. Hidden files are none, and subfolders are not read.

    Raises: DataError if there is none; and when they are read, if one cannot be, or is of another size than the first.
    """
    paths = sorted(filter(is_image_file, folder.iterdir()))
    others = sorted(path.name for path in folder.iterdir() if path.is_dir() and any(map(is_image_file, path.iterdir())))
    if not paths:
        remedy = f"; its subfolder {others[0]} does: name that one" if others else ""
        raise DataError(f"{folder} holds no images; their names end in one of: {', '.join(EXTENSIONS)}{remedy}")
    if others:
        log.warning("%s: images in its %d subfolders, such as %s, are left out", folder, len(others), others[0])
    size = _pixels(paths[0]).shape[:2]

    def images(rows: range) -> torch.Tensor:
        pixels = [_pixels(path) for path in paths[rows.start : rows.stop]]
        for path, image in zip(paths[rows.start : rows.stop], pixels, strict=True):
            if image.shape[:2] != size:
                raise DataError(
                    f"{path} is {size_text(image.shape)}, and {paths[0].name} is {size_text(size)}; "
                    "all images of a folder must have one size"
                )
        return torch.from_numpy(np.stack(pixels)).to(device).permute(0, 3, 1, 2)

    return ImageSet(str(folder), len(paths), images)


def is_image_file(path: Path) -> bool:
    """Whether a file is taken for an image, by its name; what begins with a dot is something of the system's."""
    return path.suffix[1:].lower() in EXTENSIONS and not path.name.startswith(".")


def read_image(path: Path) -> Image.Image:
    """An image file as one sees it: upright, in RGB of 8 bits.

    65,536 greys are scaled to 256; what is transparent lies on white; of an animation the first frame counts; CMYK and
    palettes are converted as Pillow does, without colour profiles.

    Raises: DataError if Pillow does not open it, or its pixels are floats or 32-bit numbers, whose range nobody knows.
    """
    try:
        with Image.open(path) as image:
            upright = ImageOps.exif_transpose(image)
            deep = upright.mode.startswith("I;16") or (image.format in ("PNG", "PPM") and upright.mode == "I")
            if upright.mode in ("F", "I") and not deep:
                kind = "floats" if upright.mode == "F" else "32-bit numbers"
                raise DataError(f"cannot read {path} as an image: its pixels are {kind}. Save it with 8 or 16 bits")
            if deep:  # Pillow would clip them at 255
                upright = upright.point(lambda value: value * (1 / 257))
            elif upright.has_transparency_data:
                rgba = upright.convert("RGBA")
                upright = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
            return upright.convert("RGB")
    except Image.DecompressionBombError as error:
        raise DataError(f"cannot read {path} as an image: {error}") from error
    except (OSError, SyntaxError, ValueError, EOFError, IndexError, TypeError, struct.error, zlib.error) as error:
        # What Pillow raises for a damaged file depends on where the damage is.
        reason = str(error).splitlines()[0] if str(error) else "it is damaged"
        raise DataError(f"cannot read {path} as an image: {reason}") from error


def fitted(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """The middle of an image at a size (height, width); one of that size as it is.

    It is scaled, by Lanczos, until it just covers that size, and what sticks out is cut off on both sides alike.
    """
    height, width = size
    return image if image.size == (width, height) else ImageOps.fit(image, (width, height), Image.Resampling.LANCZOS)


def _pixels(path: Path) -> np.ndarray:
    """An image file as (H, W, 3) uint8."""
    return np.array(read_image(path))

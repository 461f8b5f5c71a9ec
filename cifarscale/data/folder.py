"""A folder of image files as a data set: `train/CLASS/*.png`, and `test/CLASS/*.png` or images set aside for it."""

import json
import logging
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.progress import track

from cifarscale.config.validation import nearest
from cifarscale.data.images import EXTENSIONS, fitted, is_image_file, read_image
from cifarscale.data.source import Source, Split, size_text, warn_of_shared_images
from cifarscale.distributed.randomness import permutation
from cifarscale.errors import DataError
from cifarscale.log import console

log = logging.getLogger(__name__)

_NAME_LENGTH = 200
"""Bytes of a file's name in JSON, as samples keep it: the end of a longer one."""


@dataclass(frozen=True)
class _File:
    path: Path
    label: str


def folder_source(source: Path, size: int = 0, holdout: int = 0) -> Source:
    """The images below a folder, in an order that mixes the classes and depends on their names alone.

    Args:
        source: holds `train/` and maybe `test/`; without `train/` it is taken for that itself.
        size: side in pixels of the square that each image is scaled and cut to; 0 keeps the size that all have.
        holdout: images of each class that are set aside for `test`, chosen by a fixed seed; 0 where there is `test/`.
    Raises: DataError for a folder that makes no data set, and for files that cannot be read.
    """
    if not source.is_dir():
        raise DataError(f"--source {source} is not a folder. Name one that holds train/CLASS/ with images")
    train_folder = source / "train" if (source / "train").is_dir() else source
    train = _files(train_folder, "test" if train_folder == source else "")
    test = _files(source / "test") if (source / "test").is_dir() else []
    if not train:
        raise DataError(
            f"{train_folder} holds no images in folders of classes: it needs CLASS/*.png, one folder a class; names of "
            f"images end in one of: {', '.join(EXTENSIONS)}"
        )
    classes = sorted({file.label for file in train})
    if test and holdout:
        raise DataError(f"--holdout {holdout} has no effect: {source / 'test'} holds {len(test)} images. Leave it out")
    if unknown := sorted({file.label for file in test} - set(classes)):
        near = nearest(unknown[0], classes)
        raise DataError(
            f"{source / 'test'} has {len(unknown)} classes that {train_folder} lacks, such as {unknown[0]!r}{near}. "
            "Give both the same folders"
        )
    if not test and not holdout:
        raise DataError(
            f"{source} has no images in test/, and a set needs some to test on. Make test/CLASS/, or set images of "
            "each class aside: --holdout 20"
        )
    if holdout:
        train, test = _set_aside(train, classes, holdout)
    if missing := sorted(set(classes) - {file.label for file in test}):
        log.warning("%d classes have no images in test, such as %s", len(missing), missing[0])
    if len(classes) == 1:
        log.warning("there is one class, %s: a generator can learn from it, a classifier needs two", classes[0])
    arrays = _read([*train, *test], size)
    splits, start = [], 0
    for name, files in (("train", train), ("test", test)):
        order = permutation(0, f"folder {name}", 0, len(files))
        fine = np.array([classes.index(file.label) for file in files], np.int64)
        names = [_kept_name(file.path.relative_to(source)) for file in files]
        images = arrays[start : start + len(files)]
        splits.append(Split(name, images[order], fine[order], filenames=tuple(names[i] for i in order)))
        start += len(files)
    made = Source("folder", tuple(classes), (), tuple(splits))
    warn_of_shared_images(made)
    return made


def _files(folder: Path, other: str = "") -> list[_File]:
    """The image files of each class, sorted by class and name; says what is left out.

    Args:
        other: a folder in it that is no class.
    """
    found: list[_File] = []
    left_out, hidden, empty = [], [], []
    for entry in sorted(folder.iterdir()):
        if entry.is_dir() and entry.name == other:
            continue
        before = len(found)
        for path in sorted(entry.rglob("*")) if entry.is_dir() else [entry]:
            relative = path.relative_to(folder)
            if path.is_dir():
                continue
            if any(part.startswith(".") for part in relative.parts):
                hidden.append(relative)
            elif path != entry and (is_image_file(path) or path.suffix.lower() == ".gif"):
                found.append(_File(path, _text(entry.name)))
            else:
                left_out.append(relative)
        if entry.is_dir() and not entry.name.startswith(".") and len(found) == before:
            empty.append(entry.name)
    if hidden:
        log.warning("%s: %d hidden files are left out, such as %s", folder, len(hidden), hidden[0])
    if left_out:
        log.warning(
            "%s: %d files are left out, such as %s: they are no images by their names, or lie in no class's folder",
            *(folder, len(left_out), left_out[0]),
        )
    if empty:
        log.warning("%s: %d folders without images are no classes, such as %s", folder, len(empty), empty[0])
    return found


def _set_aside(files: Sequence[_File], classes: Sequence[str], count: int) -> tuple[list[_File], list[_File]]:
    """The files without, and with `count` of each class. Which ones depends on the class and on its files alone."""
    kept: list[_File] = []
    aside: list[_File] = []
    for label in classes:
        of_class = [file for file in files if file.label == label]
        if len(of_class) <= count:
            raise DataError(
                f"--holdout {count} leaves nothing to train on of class {label!r}, which has {len(of_class)} images. "
                f"Set fewer aside: --holdout {max(1, len(of_class) // 5)}"
            )
        chosen = set(permutation(0, f"holdout {label}", 0, len(of_class))[:count].tolist())
        for i, file in enumerate(of_class):
            (aside if i in chosen else kept).append(file)
    return kept, aside


def _read(files: Sequence[_File], size: int) -> NDArray[np.uint8]:
    """The images (n, H, W, 3), read by several threads."""
    pixels: list[NDArray[np.uint8]] = []
    damaged: list[str] = []
    sizes: dict[tuple[int, int], Path] = {}
    enlarged = 0
    for file, read in zip(files, _reading(files, size), strict=True):
        if isinstance(read, DataError):
            damaged.append(str(read))
            continue
        image, was_enlarged = read
        enlarged += was_enlarged
        height, width, _ = image.shape
        sizes.setdefault((height, width), file.path)
        if len(sizes) == 1:
            pixels.append(image)
    if damaged:
        raise DataError(
            f"{len(damaged)} of {len(files)} files cannot be read; the first: {damaged[0]}. Repair or remove them"
        )
    if len(sizes) > 1:
        (one, path), (other, other_path), *_ = sizes.items()
        raise DataError(
            f"the images have {len(sizes)} sizes: {path} is {size_text(one)}, {other_path} {size_text(other)}. Scale "
            f"and cut them to squares of one size: --size {max(32, min(min(each) for each in sizes) // 8 * 8)}"
        )
    if enlarged:
        log.warning("%d of %d images are smaller than %d pixels, and were enlarged", enlarged, len(files), size)
    return np.stack(pixels)


def _reading(files: Sequence[_File], size: int) -> Iterator[tuple[NDArray[np.uint8], bool] | DataError]:
    """Each file's pixels, and whether they were enlarged; or what is wrong with it."""

    def read(file: _File) -> tuple[NDArray[np.uint8], bool] | DataError:
        try:
            image = read_image(file.path)
        except DataError as error:
            return error
        return np.array(fitted(image, (size, size)) if size else image), bool(size) and min(image.size) < size

    with ThreadPoolExecutor() as pool:
        yield from track(pool.map(read, files), "reading", len(files), console=console, disable=not console.is_terminal)


def _kept_name(path: Path) -> str:
    name = _text(path.as_posix())
    while len(json.dumps(name)) > _NAME_LENGTH:
        name = f"…{name[2:]}"
    return name


def _text(name: str) -> str:
    """A name in a file system of another encoding with ? for what is not UTF-8."""
    return name.encode("utf-8", "replace").decode()

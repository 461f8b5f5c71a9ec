"""A labelled image set in memory, as it is before it becomes shards; and what a function of one's own gives for one."""

import hashlib
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cifarscale.errors import DataError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Split:
    """One split of a set.

    Attributes:
        images: (n, H, W, 3) uint8, RGB.
        fine: (n,) int64, labels.
        coarse: (n,) int64, the labels' superclasses; None for a set without these.
        filenames: n original names; empty where there are none.
    """

    name: str
    images: NDArray[np.uint8]
    fine: NDArray[np.int64]
    coarse: NDArray[np.int64] | None = None
    filenames: tuple[str, ...] = ()


@dataclass(frozen=True)
class Source:
    """A whole set: its splits, `train` first, and the names that the labels index; no `coarse_names` without
    superclasses."""

    dataset: str
    fine_names: tuple[str, ...]
    coarse_names: tuple[str, ...]
    splits: tuple[Split, ...]

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        _, height, width, _ = self.splits[0].images.shape
        return height, width


@dataclass(frozen=True)
class ImageData:
    """A data set as arrays.

    Attributes:
        classes: their names, which the labels index.
        train, test: images (n, H, W, 3) uint8, RGB, all of one size; and their labels (n,), whole numbers from 0.
        superclasses: the name of each class's superclass; empty for none.
    """

    classes: Sequence[str]
    train: tuple[ArrayLike, ArrayLike]
    test: tuple[ArrayLike, ArrayLike]
    superclasses: Sequence[str] = ()


class Sample(NamedTuple):
    """One image of a data set that is given image by image.

    Attributes:
        split: `train` or `test`.
        image: (H, W, 3) uint8, RGB.
        label: name of its class.
        superclass: name of the superclass of that class; empty for none.
        filename: its original name; empty for none.
    """

    split: str
    image: Any
    label: str
    superclass: str = ""
    filename: str = ""


def source_of(dataset: str, given: Any) -> Source:
    """The set that a registered function gives: a `Source`, an `ImageData`, or `Sample`s one by one.

    Raises: DataError for whatever is not as it must be; what the function raises while it yields.
    """
    if isinstance(given, Source):
        return given
    if isinstance(given, ImageData):
        source = _of_arrays(dataset, given)
    elif isinstance(given, Iterable) and not isinstance(given, str | bytes | dict):
        source = _of_samples(dataset, given)
    else:
        raise DataError(
            f"it gives {type(given).__name__}; return cs.ImageData(…), or yield cs.Sample(…) image by image"
        )
    warn_of_shared_images(source)
    return source


def warn_of_shared_images(source: Source) -> None:
    """Says how many images of another split lie in the training split, too, equal in every pixel."""
    first, *others = source.splits
    known = {digest: i for i, digest in reversed(list(enumerate(map(_digest, first.images))))}
    for split in others:
        shared = [(i, known[digest]) for i, digest in enumerate(map(_digest, split.images)) if digest in known]
        if shared:
            i, j = shared[0]
            log.warning(
                "%d of the %d images of %s lie in %s, too, such as %s, which is %s there: what is measured on them "
                "says nothing about new images",
                *(len(shared), len(split.images), split.name, first.name, _name(split, i), _name(first, j)),
            )


def _digest(image: NDArray[np.uint8]) -> bytes:
    return hashlib.sha256(image.tobytes()).digest()


def _name(split: Split, i: int) -> str:
    return split.filenames[i] if split.filenames else f"number {i}"


def _of_arrays(dataset: str, data: ImageData) -> Source:
    classes = tuple(map(str, data.classes))
    splits = []
    for name, pair in (("train", data.train), ("test", data.test)):
        if not isinstance(pair, tuple) or len(pair) != 2:
            raise DataError(f"{name} is {type(pair).__name__}; it must be a pair (images, labels)")
        images, labels = map(np.asarray, pair)
        if images.ndim != 4 or images.shape[-1] != 3 or images.dtype != np.uint8 or not images.size:
            raise DataError(
                f"images of {name} have shape {images.shape} and dtype {images.dtype}; they must be "
                "(n, height, width, 3) and uint8, RGB"
            )
        if labels.shape != (len(images),) or not np.issubdtype(labels.dtype, np.integer):
            raise DataError(
                f"labels of {name} have shape {labels.shape} and dtype {labels.dtype}; they must be ({len(images)},) "
                "and whole numbers, one an image"
            )
        if labels.min() < 0 or labels.max() >= len(classes):
            raise DataError(
                f"labels of {name} lie between {labels.min()} and {labels.max()}; with {len(classes)} classes they "
                f"must lie between 0 and {len(classes) - 1}"
            )
        splits.append(Split(name, np.ascontiguousarray(images), labels.astype(np.int64)))
    sizes = [split.images.shape[1:3] for split in splits]
    if len(set(sizes)) > 1:
        raise DataError(f"images of train are {size_text(sizes[0])}, and those of test {size_text(sizes[1])}")
    if len(set(classes)) < len(classes):
        raise DataError(f"classes = {list(classes)}: a name stands there twice")
    superclasses = tuple(map(str, data.superclasses))
    if not superclasses:
        return Source(dataset, classes, (), tuple(splits))
    if len(superclasses) != len(classes):
        raise DataError(f"superclasses names {len(superclasses)}; it must name one for each of {len(classes)} classes")
    coarse_names = tuple(dict.fromkeys(superclasses))
    coarse = np.array([coarse_names.index(name) for name in superclasses], np.int64)
    with_coarse = (Split(split.name, split.images, split.fine, coarse[split.fine]) for split in splits)
    return Source(dataset, classes, coarse_names, tuple(with_coarse))


def _of_samples(dataset: str, given: Iterable[Any]) -> Source:
    samples: dict[str, list[Sample]] = {"train": [], "test": []}
    superclasses: dict[str, str] = {}
    size = None
    for i, each in enumerate(given):
        if not isinstance(each, tuple) or not 3 <= len(each) <= 5:
            raise DataError(f"item {i} that it yields is {type(each).__name__}; yield cs.Sample(split, image, label)")
        sample = Sample(*each)
        image = np.asarray(sample.image)
        if sample.split not in samples:
            raise DataError(f"sample {i} is of split {sample.split!r}; valid are 'train' and 'test'")
        if image.ndim != 3 or image.shape[-1] != 3 or image.dtype != np.uint8 or not image.size:
            raise DataError(
                f"the image of sample {i} has shape {image.shape} and dtype {image.dtype}; it must be "
                "(height, width, 3) and uint8, RGB"
            )
        size = size or image.shape
        if image.shape != size:
            raise DataError(f"sample {i} is {size_text(image.shape)}, and the first one {size_text(size)}")
        if superclasses.setdefault(sample.label, sample.superclass) != sample.superclass:
            raise DataError(
                f"class {sample.label!r} lies in {superclasses[sample.label]!r} and, with sample {i}, in "
                f"{sample.superclass!r}; each class needs exactly one superclass, or none"
            )
        samples[sample.split].append(sample._replace(image=image))
    for name, each in samples.items():
        if not each:
            raise DataError(f"it yields no sample of split {name!r}; train and test need some each")
    if any(superclasses.values()) and not all(superclasses.values()):
        without = next(label for label, superclass in superclasses.items() if not superclass)
        raise DataError(f"class {without!r} has no superclass, and others have one")
    classes, coarse_names = sorted(superclasses), sorted(filter(None, set(superclasses.values())))
    coarse = np.array([coarse_names.index(superclasses[name]) for name in classes if coarse_names], np.int64)
    splits = []
    for name, each in samples.items():
        fine = np.array([classes.index(sample.label) for sample in each], np.int64)
        filenames = tuple(sample.filename for sample in each)
        splits.append(
            Split(
                name,
                np.stack([sample.image for sample in each]),
                fine,
                coarse[fine] if coarse_names else None,
                filenames if all(filenames) else (),
            )
        )
    return Source(dataset, tuple(classes), tuple(coarse_names), tuple(splits))


def size_text(shape: Sequence[int]) -> str:
    """Width × height of an image of shape (height, width, …), as people say it."""
    return f"{shape[1]} x {shape[0]}"

"""What a function of one's own may give for a data set, and what is said of anything else."""

import logging
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from PIL import Image

import cifarscale as cs
from cifarscale.data.source import Source, source_of
from cifarscale.errors import DataError

IMAGES = np.random.default_rng(0).integers(0, 256, (6, 5, 4, 3), np.uint8)
LABELS = [0, 1, 2, 0, 1, 2]
DATA = cs.ImageData(["a", "b", "c"], (IMAGES, LABELS), (IMAGES[:2] ^ 1, [2, 0]))
SAMPLES = [
    *(cs.Sample("train", image, "abc"[label]) for image, label in zip(IMAGES, LABELS, strict=True)),
    *(("test", image, label) for image, label in zip(IMAGES[:2] ^ 1, "ca", strict=True)),
]


def assert_same(one: Source, other: Source) -> None:
    assert (one.fine_names, one.coarse_names) == (other.fine_names, other.coarse_names)
    for mine, theirs in zip(one.splits, other.splits, strict=True):
        assert (mine.name, mine.filenames) == (theirs.name, theirs.filenames)
        np.testing.assert_array_equal(mine.images, theirs.images)
        np.testing.assert_array_equal(mine.fine, theirs.fine)
        np.testing.assert_array_equal(mine.coarse, theirs.coarse)


def test_arrays_and_samples_make_the_same_set() -> None:
    """And samples are tuples; their images may be Pillow's."""
    made = source_of("own", DATA)
    assert (made.dataset, made.image_size) == ("own", (5, 4))
    assert made.splits[0].fine.dtype == np.int64
    assert_same(made, source_of("own", SAMPLES))
    assert_same(made, source_of("own", (sample for sample in SAMPLES)))
    pictures = [(split, Image.fromarray(image), label) for split, image, label, *_ in SAMPLES]
    assert_same(made, source_of("own", pictures))


def test_superclasses_are_named_by_class() -> None:
    above = {"a": "round", "b": "angular", "c": "round"}
    arrays = source_of("own", replace(DATA, superclasses=[above[name] for name in DATA.classes]))
    assert arrays.coarse_names == ("round", "angular")
    assert arrays.splits[1].coarse is not None
    assert arrays.splits[1].coarse.tolist() == [0, 0]
    samples = source_of("own", [(split, image, label, above[label]) for split, image, label, *_ in SAMPLES])
    assert samples.coarse_names == ("angular", "round")
    assert samples.splits[1].coarse is not None
    assert samples.splits[1].coarse.tolist() == [1, 1]


def test_names_of_files_are_kept() -> None:
    named = [cs.Sample(split, image, label, "", f"{i}.png") for i, (split, image, label, *_) in enumerate(SAMPLES)]
    assert source_of("own", named).splits[1].filenames == ("6.png", "7.png")


def test_images_in_both_splits_are_counted(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging.getLogger("cifarscale"), "propagate", True)
    source_of("own", DATA)
    assert not caplog.text
    source_of("own", replace(DATA, test=(IMAGES[[3, 3, 5]], [0, 0, 2])))
    assert "3 of the 3 images of test lie in train, too, such as number 0, which is number 3 there" in caplog.text


def _breaks_off() -> Iterator[Any]:
    yield SAMPLES[0]
    raise ZeroDivisionError("in the middle")


def test_what_the_function_raises_passes_through() -> None:
    with pytest.raises(ZeroDivisionError, match="in the middle"):
        source_of("own", _breaks_off())


REFUSED: dict[str, tuple[Any, str]] = {
    "nothing": (None, "it gives NoneType; return cs.ImageData"),
    "a dictionary": ({"train": 1}, "it gives dict; return cs.ImageData"),
    "no pair": (replace(DATA, train=IMAGES), "train is ndarray; it must be a pair"),
    "floats": (replace(DATA, test=(IMAGES / 255, LABELS)), "images of test have shape .* and dtype float64; they must"),
    "greys": (replace(DATA, train=(IMAGES[..., 0], LABELS)), r"images of train have shape \(6, 5, 4\)"),
    "no images": (replace(DATA, test=(IMAGES[:0], [])), r"images of test have shape \(0, 5, 4, 3\)"),
    "too few labels": (replace(DATA, train=(IMAGES, [0])), r"labels of train have shape \(1,\) .* they must be \(6,\)"),
    "labels that are names": (
        replace(DATA, train=(IMAGES, list("abcabc"))),
        "dtype <U1; they must be .* whole numbers",
    ),
    "labels out of range": (replace(DATA, classes="ab"), "labels of train lie between 0 and 2; with 2 classes"),
    "two sizes": (replace(DATA, test=(IMAGES[:2, :4], [0, 1])), "images of train are 4 x 5, and those of test 4 x 4"),
    "a class twice": (replace(DATA, classes="aba"), "a name stands there twice"),
    "a superclass short": (replace(DATA, superclasses="xy"), "superclasses names 2; it must name one for each of 3"),
    "numbers": ([1, 2], r"item 0 that it yields is int; yield cs\.Sample"),
    "another split": ([("val", IMAGES[0], "a")], "sample 0 is of split 'val'; valid are 'train' and 'test'"),
    "a sample of floats": ([("train", IMAGES[0] / 1, "a")], "the image of sample 0 has shape .* and dtype float64"),
    "samples of two sizes": ([*SAMPLES, ("test", IMAGES[0, :2], "a")], "sample 8 is 4 x 2, and the first one 4 x 5"),
    "no test": (SAMPLES[:6], "it yields no sample of split 'test'"),
    "a class in two": (
        [("train", IMAGES[0], "a", "x"), ("test", IMAGES[1], "a", "y")],
        "class 'a' lies in 'x' and, with sample 1, in 'y'",
    ),
    "a class in none": (
        [("train", IMAGES[0], "a", "x"), ("test", IMAGES[1], "b")],
        "class 'b' has no superclass, and others have one",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_anything_else_is_refused_in_one_line(what: str) -> None:
    given, message = REFUSED[what]
    with pytest.raises(DataError, match=message) as caught:
        source_of("own", given)
    assert "\n" not in str(caught.value)

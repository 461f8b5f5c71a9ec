"""The drawn set: the same bytes everywhere, balanced, and a larger one begins with the smaller one."""

import hashlib

import numpy as np
import pytest

from cifarscale.data.source import Source
from cifarscale.data.synthetic import synthetic_source

SHA256_OF_FIRST_100 = {
    "train": "9d46a48a4380b9794f5e194575d4874ffd3571b898b4a2b7530b28abadccf00e",
    "test": "036863573cd26425857208c4d6a5a1fa69de852650dcc1ae4237ec2ebca59110",
}


@pytest.fixture(scope="module")
def drawn() -> Source:
    return synthetic_source(1000, 300)


def test_bytes_are_pinned(drawn: Source) -> None:
    found = {split.name: hashlib.sha256(split.images[:100].tobytes()).hexdigest() for split in drawn.splits}
    assert found == SHA256_OF_FIRST_100


@pytest.mark.parametrize(("num_train", "num_test"), [(0, 0), (1, 99), (250, 100), (301, 201)])
def test_larger_set_begins_with_the_smaller_one(drawn: Source, num_train: int, num_test: int) -> None:
    smaller = synthetic_source(num_train, num_test)
    assert [len(split.images) for split in smaller.splits] == [num_train, num_test]
    for part, whole in zip(smaller.splits, drawn.splits, strict=True):
        n = len(part.images)
        np.testing.assert_array_equal(part.images, whole.images[:n])
        np.testing.assert_array_equal(part.fine, whole.fine[:n])
        np.testing.assert_array_equal(part.coarse, whole.coarse[:n])
        assert part.filenames == whole.filenames[:n]


def test_shapes_and_types(drawn: Source) -> None:
    assert drawn.dataset == "synthetic"
    assert [split.name for split in drawn.splits] == ["train", "test"]
    for split, n in zip(drawn.splits, (1000, 300), strict=True):
        assert (split.images.shape, split.images.dtype) == ((n, 32, 32, 3), np.uint8)
        assert split.images.flags.c_contiguous
        assert (split.fine.shape, split.fine.dtype) == ((n,), np.int64)
        assert (split.coarse.shape, split.coarse.dtype) == ((n,), np.int64)
        assert len(set(split.filenames)) == n


def test_each_hundred_samples_hold_each_class_once_in_an_order_of_their_own(drawn: Source) -> None:
    for split in drawn.splits:
        hundreds = split.fine.reshape(-1, 100)
        assert (np.sort(hundreds) == np.arange(100)).all()
        assert len(np.unique(hundreds, axis=0)) == len(hundreds)


def test_names_say_what_is_drawn(drawn: Source) -> None:
    assert len(set(drawn.fine_names)) == 100
    assert len(set(drawn.coarse_names)) == 20
    assert "red_striped_disc" in drawn.fine_names
    assert "striped_disc" in drawn.coarse_names
    for split in drawn.splits:
        for i, (fine, coarse, filename) in enumerate(zip(split.fine, split.coarse, split.filenames, strict=True)):
            assert drawn.fine_names[fine].partition("_")[2] == drawn.coarse_names[coarse]
            assert filename == f"{drawn.fine_names[fine]}_s_{i:06d}.png"


def test_no_image_occurs_twice(drawn: Source) -> None:
    images = np.concatenate([split.images for split in drawn.splits])
    assert len(np.unique(images.reshape(len(images), -1), axis=0)) == len(images)


def test_colour_is_what_the_name_says() -> None:
    """The middle of a plain disc is paint alone, whatever its place and size."""
    train = (drawn := synthetic_source(1000, 0)).splits[0]
    middle = train.images[:, 14:18, 14:18].mean((1, 2))
    strongest = {"red": 0, "green": 1, "blue": 2}
    for colour, channel in strongest.items():
        discs = train.fine == drawn.fine_names.index(f"{colour}_plain_disc")
        assert discs.sum() == 10
        assert (middle[discs].argmax(1) == channel).all()

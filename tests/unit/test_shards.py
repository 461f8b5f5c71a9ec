"""Shards: the same bytes from the same input, readable by everyone's tools, and no damage unseen."""

import hashlib
import os
import random
import shutil
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import webdataset as wds
from PIL import Image

from cifarscale.data.manifest import MANIFEST_NAME, Manifest
from cifarscale.data.shards import find_damage, read_shard, read_split, record, sample_key, write_shards
from cifarscale.data.source import Source, Split
from cifarscale.errors import CifarscaleError, DataError

RECORD = record((32, 32))


def write(source: Source, folder: Path, num_shards: int) -> Manifest:
    folder.mkdir()
    return write_shards(source, folder, num_shards, lambda _: None)


def contents(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def changed(source: Source, **values: object) -> Source:
    """The set with other values in its training split."""
    return replace(source, splits=(replace(source.splits[0], **values), *source.splits[1:]))


def first_samples(source: Source, num_samples: int) -> Source:
    """The set with fewer samples in each split."""
    splits = tuple(
        Split(s.name, s.images[:num_samples], s.fine[:num_samples], s.coarse[:num_samples], s.filenames[:num_samples])
        for s in source.splits
    )
    return replace(source, splits=splits)


@pytest.fixture
def manifest(shards: Path) -> Manifest:
    return Manifest.load(shards)


@pytest.fixture
def copy(shards: Path, tmp_path: Path) -> Path:
    """A copy of the shards, to be damaged."""
    return Path(shutil.copytree(shards, tmp_path / "copy"))


# What is written


def test_building_twice_gives_identical_bytes(source: Source, shards: Path, tmp_path: Path) -> None:
    write(source, tmp_path / "again", 16)
    assert contents(tmp_path / "again") == contents(shards)


def test_the_folder_holds_the_manifest_and_its_shards_and_nothing_else(shards: Path, manifest: Manifest) -> None:
    names = {entry.name for split in manifest.splits.values() for entry in split.shards}
    assert {path.name for path in shards.iterdir()} == names | {MANIFEST_NAME}


@pytest.mark.parametrize("num_shards", [1, 2, 7, 100])
def test_the_number_of_shards_does_not_change_the_samples(source: Source, num_shards: int, tmp_path: Path) -> None:
    small = first_samples(source, 100)
    manifest = write(small, tmp_path / "shards", num_shards)
    assert len(manifest.split("train").shards) == num_shards
    for split in small.splits:
        samples = read_split(tmp_path / "shards", manifest, split.name)
        np.testing.assert_array_equal(samples.images, split.images)
        np.testing.assert_array_equal(samples.labels, split.fine)


def test_shards_are_even_and_complete(source: Source, manifest: Manifest) -> None:
    for split in source.splits:
        sizes = [entry.num_samples for entry in manifest.split(split.name).shards]
        assert sum(sizes) == manifest.split(split.name).num_samples == len(split.fine)
        assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("num_shards", [-1, 0, 101])
def test_a_number_of_shards_out_of_range_is_refused(source: Source, num_shards: int, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=f"--num-shards {num_shards} is not between 1 and 100"):
        write(first_samples(source, 100), tmp_path / "shards", num_shards)
    assert not list((tmp_path / "shards").iterdir())


def test_progress_counts_each_sample(source: Source, shards: Path, manifest: Manifest, tmp_path: Path) -> None:
    written: list[int] = []
    write_shards(first_samples(source, 100), tmp_path, 3, written.append)
    assert sum(written) == 200
    checked: list[int] = []
    find_damage(shards, manifest, checked.append)
    assert sum(checked) == sum(len(split.fine) for split in source.splits)


def test_a_class_in_two_superclasses_is_refused(source: Source, tmp_path: Path) -> None:
    coarse = source.splits[0].coarse.copy()
    coarse[0] += 1
    with pytest.raises(DataError, match="needs exactly one superclass"):
        write(changed(source, coarse=coarse), tmp_path / "shards", 1)


def test_names_too_long_for_their_block_are_refused(source: Source, tmp_path: Path) -> None:
    small = first_samples(source, 100)
    filenames = ("x" * 500, *small.splits[0].filenames[1:])
    with pytest.raises(DataError, match="sample 0 of train are too long"):
        write(changed(small, filenames=filenames), tmp_path / "shards", 1)


def test_a_folder_that_cannot_be_written_is_one_clear_line(source: Source, tmp_path: Path) -> None:
    with pytest.raises(CifarscaleError, match=r"^cannot write .*train-000000\.tar: No such file") as caught:
        write_shards(first_samples(source, 100), tmp_path / "missing", 1, lambda _: None)
    assert "\n" not in str(caught.value)


# Reading, by others and by us


@pytest.mark.parametrize("image_format", ["rgb8", "pil"])
def test_plain_webdataset_reads_every_sample(
    source: Source, shards: Path, manifest: Manifest, image_format: str
) -> None:
    for split in source.splits:
        urls = [str(shards / entry.name) for entry in manifest.split(split.name).shards]
        read = wds.WebDataset(urls, shardshuffle=False).decode(image_format).to_tuple("__key__", "ppm", "cls", "json")
        for i, (key, image, label, about) in enumerate(read):
            fine, coarse = int(split.fine[i]), int(split.coarse[i])
            assert key == sample_key(split.name, i)
            assert label == fine
            assert about == {
                "fine": fine,
                "fine_name": source.fine_names[fine],
                "coarse": coarse,
                "coarse_name": source.coarse_names[coarse],
                "filename": split.filenames[i],
            }
            np.testing.assert_array_equal(np.asarray(image), split.images[i])
        assert i + 1 == len(split.fine)


def test_names_in_any_script_survive(source: Source, tmp_path: Path) -> None:
    small = first_samples(source, 100)
    names = tuple(f"größe 图 {i} ☃ \"'.png" for i in range(100))
    write(changed(small, filenames=names), tmp_path / "shards", 1)
    read = wds.WebDataset(str(tmp_path / "shards/synthetic-train-000000.tar"), shardshuffle=False).decode()
    assert tuple(sample["json"]["filename"] for sample in read) == names


def test_tarfile_reads_what_is_the_same_on_every_machine(source: Source, shards: Path, manifest: Manifest) -> None:
    split, entry = source.splits[0], manifest.split("train").shards[0]
    with tarfile.open(shards / entry.name) as tar:
        members = tar.getmembers()
        assert len(members) == 3 * entry.num_samples
        for member in members:
            assert (member.mtime, member.uid, member.gid, member.mode) == (0, 0, 0, 0o644)
            assert (member.uname, member.gname) == ("", "")
            assert member.isreg()
        for i in range(entry.num_samples):
            image = tar.extractfile(members[3 * i])
            assert image is not None
            np.testing.assert_array_equal(np.asarray(Image.open(image)), split.images[i])


def test_a_record_is_where_tarfile_finds_the_members(source: Source, shards: Path, manifest: Manifest) -> None:
    split, entry = source.splits[0], manifest.split("train").shards[0]
    records = np.fromfile(shards / entry.name, RECORD, entry.num_samples)
    with tarfile.open(shards / entry.name) as tar:
        for i, (image, label) in enumerate(zip(tar.getmembers()[::3], tar.getmembers()[1::3], strict=False)):
            assert image.offset == i * RECORD.itemsize
            assert image.offset_data + image.size == i * RECORD.itemsize + RECORD.fields["pixels"][1] + 32 * 32 * 3
            assert label.offset_data == i * RECORD.itemsize + RECORD.fields["fine"][1]
            assert records["key"][i].decode() == image.name == f"{sample_key('train', i)}.ppm"
    np.testing.assert_array_equal(records["pixels"], split.images[: entry.num_samples])
    np.testing.assert_array_equal(records["fine"].astype(int), split.fine[: entry.num_samples])


def test_read_shard_gives_the_samples_between_its_bounds(source: Source, shards: Path, manifest: Manifest) -> None:
    for split in source.splits:
        start = 0
        for entry in manifest.split(split.name).shards:
            samples, rows = (
                read_shard(shards, entry, manifest.image_size),
                slice(start, start := start + entry.num_samples),
            )
            np.testing.assert_array_equal(samples.images, split.images[rows])
            np.testing.assert_array_equal(samples.labels, split.fine[rows])
            np.testing.assert_array_equal(samples.ids, np.arange(rows.start, rows.stop))


def test_read_split_gives_the_source(source: Source, shards: Path, manifest: Manifest) -> None:
    for split in source.splits:
        samples = read_split(shards, manifest, split.name)
        np.testing.assert_array_equal(samples.images, split.images)
        np.testing.assert_array_equal(samples.labels, split.fine)
        np.testing.assert_array_equal(samples.ids, np.arange(len(split.fine)))
        assert (samples.images.dtype, samples.labels.dtype, samples.ids.dtype) == (np.uint8, np.int64, np.int64)


def test_an_unknown_split_is_refused(shards: Path, manifest: Manifest) -> None:
    with pytest.raises(DataError, match="synthetic has no split 'validation'; there are: train, test"):
        read_split(shards, manifest, "validation")


# Damage


def one_problem(folder: Path, manifest: Manifest) -> str:
    """The only problem that is found, after seeing that it is one line which names the folder."""
    problems = find_damage(folder, manifest)
    assert len(problems) == 1
    assert "\n" not in problems[0]
    assert str(folder) in problems[0]
    return problems[0]


def refused(folder: Path, manifest: Manifest, split: str = "train") -> str:
    """What `read_split` says."""
    with pytest.raises(DataError) as caught:
        read_split(folder, manifest, split)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_whole_shards_have_no_damage(shards: Path, manifest: Manifest) -> None:
    assert find_damage(shards, manifest) == []


def test_any_flipped_byte_is_found(copy: Path, manifest: Manifest) -> None:
    """In headers, pixels, labels, names, padding and the end of the file, at the edges of each and anywhere."""
    entry = manifest.split("train").shards[5]
    path = copy / entry.name
    whole = path.read_bytes()
    end = entry.num_samples * RECORD.itemsize
    edges = [0, 99, 511, 512, 524, 525, 525 + 3071, 525 + 3072, 4095, 4096, 4608, 4609, 5119, 5120, 5632, 6143, 6144]
    rng = random.Random(0)
    offsets = [*edges, end - 1, end, len(whole) - 1, *(rng.randrange(len(whole)) for _ in range(60))]
    for offset in offsets:
        flipped = bytearray(whole)
        flipped[offset] ^= 1 << rng.randrange(8)
        path.write_bytes(flipped)
        assert f"{entry.name} is damaged" in one_problem(copy, manifest)
        assert f"{entry.name} is damaged" in refused(copy, manifest)
    path.write_bytes(whole)
    assert find_damage(copy, manifest) == []


@pytest.mark.parametrize("cut", [None, 1, 512, 6144, 10240, -1, -10240])
def test_a_shard_of_another_length_is_found(copy: Path, manifest: Manifest, cut: int | None) -> None:
    """Bytes cut off at the end, from one to all of them; or zeros appended."""
    path = copy / manifest.split("train").shards[5].name
    whole = path.stat().st_size
    os.truncate(path, 0 if cut is None else whole - cut)
    expected = f"{path} has {path.stat().st_size:,} bytes and should have {whole:,}"
    assert expected in one_problem(copy, manifest)
    assert expected in refused(copy, manifest)


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_missing_shard_is_found(copy: Path, manifest: Manifest, split: str) -> None:
    path = copy / manifest.split(split).shards[0].name
    path.unlink()
    assert f"shard {path} is missing" in one_problem(copy, manifest)
    assert f"shard {path} is missing" in refused(copy, manifest, split)


def test_a_shard_that_cannot_be_read_is_found(copy: Path, manifest: Manifest) -> None:
    path = copy / manifest.split("train").shards[0].name
    path.unlink()
    path.mkdir()
    assert f"cannot read shard {path}: Is a directory" in one_problem(copy, manifest)
    assert f"cannot read shard {path}: Is a directory" in refused(copy, manifest)


def test_swapped_shards_are_found_and_told_from_damaged_ones(copy: Path, manifest: Manifest) -> None:
    entries = manifest.split("train").shards
    first = entries[0]
    second = next(entry for entry in entries[1:] if entry.num_samples == first.num_samples)
    (copy / first.name).rename(copy / "aside")
    (copy / second.name).rename(copy / first.name)
    (copy / "aside").rename(copy / second.name)
    problems = find_damage(copy, manifest)
    assert len(problems) == 2
    assert f"{first.name} holds the samples of {second.name}" in problems[0]
    assert f"{second.name} holds the samples of {first.name}" in problems[1]
    refused(copy, manifest)


def test_a_stranger_is_found(copy: Path, manifest: Manifest) -> None:
    """It would be read by whoever names the shards with a pattern."""
    shutil.copy(copy / manifest.split("train").shards[0].name, copy / "synthetic-train-000016.tar")
    problem = one_problem(copy, manifest)
    assert "synthetic-train-000016.tar" in problem
    assert "that its manifest does not know" in problem


def test_each_of_several_problems_is_named(copy: Path, manifest: Manifest) -> None:
    for entry in manifest.split("train").shards[3:6]:
        (copy / entry.name).unlink()
    problems = find_damage(copy, manifest)
    assert len(problems) == 3
    assert all(f"{i:06d}.tar" in problem for i, problem in zip(range(3, 6), problems, strict=True))


def test_a_stranger_beside_a_missing_shard_is_not_another_build(source: Source, tmp_path: Path) -> None:
    """Even if there are as many problems as shards."""
    manifest = write(first_samples(source, 100), tmp_path / "shards", 1)
    (tmp_path / "shards/synthetic-train-000000.tar").rename(tmp_path / "shards/stranger.tar")
    problems = find_damage(tmp_path / "shards", manifest)
    assert len(problems) == 2
    assert "is missing" in problems[0]
    assert "does not know" in problems[1]


def other_build(source: Source, folder: Path) -> Manifest:
    """The manifest of a set of the same size, with the same names, and other pixels."""
    splits = tuple(replace(split, images=255 - split.images) for split in source.splits)
    return write(replace(source, splits=splits), folder, 16)


def test_the_manifest_of_another_build_is_told_in_one_line(source: Source, shards: Path, tmp_path: Path) -> None:
    other = other_build(source, tmp_path / "other")
    assert "the manifest is from another build" in one_problem(shards, other)
    assert "is damaged" in refused(shards, other)


def test_the_manifest_of_another_cut_is_refused(source: Source, shards: Path, tmp_path: Path) -> None:
    other = write(source, tmp_path / "other", 15)
    assert find_damage(shards, other)
    refused(shards, other)


# The manifest


def test_a_manifest_survives_the_disk(source: Source, manifest: Manifest, tmp_path: Path) -> None:
    manifest.save(tmp_path)
    loaded = Manifest.load(tmp_path)
    assert loaded == manifest
    assert loaded.fingerprint == manifest.fingerprint
    assert (loaded.fine_names, loaded.coarse_names) == (source.fine_names, source.coarse_names)


def test_the_manifest_knows_each_superclass(source: Source, manifest: Manifest) -> None:
    for split in source.splits:
        np.testing.assert_array_equal(np.array(manifest.coarse_of_fine)[split.fine], split.coarse)


def test_mean_and_deviation_are_those_of_numpy(source: Source, manifest: Manifest) -> None:
    for split in source.splits:
        floats, entry = split.images.astype(np.float64) / 255, manifest.split(split.name)
        np.testing.assert_allclose(entry.mean, floats.mean((0, 1, 2)), atol=1e-6)
        np.testing.assert_allclose(entry.std, floats.std((0, 1, 2)), atol=1e-6)


def _other_pixel(source: Source) -> Source:
    images = source.splits[0].images.copy()
    images[42, 31, 31, 2] ^= 1
    return changed(source, images=images)


def _other_label(source: Source) -> Source:
    fine, coarse = source.splits[0].fine.copy(), source.splits[0].coarse.copy()
    other = np.flatnonzero((fine != fine[42]) & (coarse == coarse[42]))[0]
    fine[42] = fine[other]
    return changed(source, fine=fine)


def _other_filename(source: Source) -> Source:
    filenames = source.splits[0].filenames
    return changed(source, filenames=(*filenames[:42], "other.png", *filenames[43:]))


def _other_order(source: Source) -> Source:
    split, order = source.splits[0], np.arange(100)
    order[[41, 42]] = 42, 41
    names = tuple(split.filenames[i] for i in order)
    return changed(
        source, images=split.images[order], fine=split.fine[order], coarse=split.coarse[order], filenames=names
    )


CHANGES: dict[str, Callable[[Source], Source]] = {
    "pixel": _other_pixel,
    "label": _other_label,
    "file name": _other_filename,
    "order": _other_order,
    "class name": lambda source: replace(source, fine_names=("other", *source.fine_names[1:])),
    "superclass name": lambda source: replace(source, coarse_names=("other", *source.coarse_names[1:])),
    "data set's name": lambda source: replace(source, dataset="other"),
    "number of samples": lambda source: replace(
        source, splits=(first_samples(source, 99).splits[0], *source.splits[1:])
    ),
}


def test_the_fingerprint_changes_with_anything(source: Source, tmp_path: Path) -> None:
    small = first_samples(source, 100)
    prints = {change: write(make(small), tmp_path / change, 4).fingerprint for change, make in CHANGES.items()}
    prints |= {f"{n} shards": write(small, tmp_path / f"{n}", n).fingerprint for n in (3, 4, 5)}
    assert len(set(prints.values())) == len(prints)
    assert write(small, tmp_path / "again", 4).fingerprint == prints["4 shards"]
    for fingerprint in prints.values():
        assert len(fingerprint) == 16
        int(fingerprint, 16)


def test_a_folder_without_manifest_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=f"{tmp_path} is not a folder of shards: it has no {MANIFEST_NAME}"):
        Manifest.load(tmp_path)


@pytest.mark.parametrize(
    "make",
    [
        lambda content: content[: len(content) // 2],
        lambda content: b"",
        lambda content: b"[]",
        lambda content: b"\xff\xfe" + content,
        lambda content: content.replace(b'"format": 1', b'"format": 2'),
        lambda content: content.replace(b'"format": 1', b'"format": 1, "more": 0'),
        lambda content: content.replace(b'"coarse_of_fine"', b'"coarse_of"'),
        lambda content: content.replace(b'"num_samples": 507', b'"num_samples": "many"'),
    ],
    ids=["truncated", "empty", "list", "bytes", "format", "unknown key", "missing key", "type"],
)
def test_an_unreadable_manifest_is_one_clear_line(copy: Path, make: Callable[[bytes], bytes]) -> None:
    path = copy / MANIFEST_NAME
    content = path.read_bytes()
    path.write_bytes(make(content))
    assert path.read_bytes() != content
    with pytest.raises(DataError, match=f"{path} is damaged or of another format") as caught:
        Manifest.load(copy)
    assert "\n" not in str(caught.value)


def test_a_manifest_that_cannot_be_opened_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / MANIFEST_NAME).mkdir()
    with pytest.raises(DataError, match=rf"cannot read {tmp_path / MANIFEST_NAME}: Is a directory"):
        Manifest.load(tmp_path)

"""A folder of image files that nobody prepared becomes a data set, or one clear line says why not."""

import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cifarscale.data.build import build_shards, locate_shards
from cifarscale.data.folder import folder_source
from cifarscale.data.manifest import MANIFEST_NAME, Manifest
from cifarscale.data.source import Source
from cifarscale.errors import DataError

CLASSES = ("cat", "dog", "Vögel")
Said = Callable[[], str]


def draw(path: Path, seed: int, size: tuple[int, int] = (12, 10), mode: str = "RGB") -> Path:
    """An image of noise; `size` is (width, height)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
    Image.fromarray(pixels).convert(mode).save(path)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Six images of each class to train on, two to test on, in several formats."""
    folder = tmp_path / "My photos"
    for i, label in enumerate(CLASSES):
        for j in range(6):
            draw(folder / f"train/{label}/{j}.{('png', 'bmp', 'PNG')[j % 3]}", 100 * i + j)
        for j in range(2):
            draw(folder / f"test/{label}/sub/{j}.png", 100 * i + 50 + j)
    return folder


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> Said:
    """What was said so far, and not yet asked."""
    monkeypatch.setattr(logging.getLogger("cifarscale"), "propagate", True)

    def said() -> str:
        text = "\n".join(caplog.messages)
        caplog.clear()
        return text

    return said


def of(source: Source, split: int, label: str) -> set[str]:
    names, fine = source.splits[split].filenames, source.splits[split].fine
    return {name for name, each in zip(names, fine, strict=True) if source.fine_names[each] == label}


def test_classes_are_folders_and_images_are_as_they_are(folder: Path, said: Said) -> None:
    source = folder_source(folder)
    assert source.fine_names == ("Vögel", "cat", "dog")
    assert [len(split.fine) for split in source.splits] == [18, 6]
    assert source.image_size == (10, 12)
    assert of(source, 1, "dog") == {"test/dog/sub/0.png", "test/dog/sub/1.png"}
    for split in source.splits:
        for image, name in zip(split.images, split.filenames, strict=True):
            np.testing.assert_array_equal(image, np.array(Image.open(folder / name)))
        assert sorted(split.fine) != list(split.fine), "the classes are mixed"
    assert not said()


def test_the_same_folder_makes_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "elsewhere" / folder.name))
    one, other = (
        build_shards("folder", tmp_path / name, 3, source, name="photos", size=8)
        for name, source in (("one", folder), ("other", copy))
    )
    assert one == other
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "other" / path.name).read_bytes()


def test_it_is_found_again_under_its_name(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    manifest = build_shards("folder", source=folder)
    assert manifest.dataset == "My-photos"
    assert len(manifest.split("train").shards) == 1, "which holds all 18 images: at least 16 a shard"
    assert locate_shards("My-photos") == Path("shards/My-photos")
    build_shards("folder", source=folder, name="others", size=8)
    assert locate_shards("others") == Path("shards/others")
    with pytest.raises(
        DataError, match="one of: My-photos, cifar10, cifar100, others, synthetic, did you mean 'others'"
    ):
        locate_shards("other")
    with pytest.raises(DataError, match=r"shards build --data folder --source '.*/My photos'$"):
        locate_shards(str(folder))
    with pytest.raises(DataError, match=r"should hold cifar-100-python/; of images of your own: --data folder$"):
        build_shards("cifar100", source=folder)


def test_what_has_changed_since_is_not_taken_for_the_same(folder: Path, tmp_path: Path) -> None:
    before = build_shards("folder", tmp_path / "shards", source=folder, size=8)
    assert build_shards("folder", tmp_path / "shards", source=folder, size=8) == before
    Image.open(folder / "train/cat/1.bmp").rotate(180).save(folder / "train/cat/1.bmp")
    with pytest.raises(
        DataError, match=r"with fingerprint \w+, and what would be built now has .* replace it: --force"
    ):
        build_shards("folder", tmp_path / "shards", source=folder, size=8)
    assert Manifest.load(tmp_path / "shards") == before
    assert build_shards("folder", tmp_path / "shards", source=folder, size=8, force=True) != before


def test_images_are_set_aside_evenly_and_always_the_same_ones(folder: Path, said: Said) -> None:
    shutil.rmtree(folder / "test")
    source = folder_source(folder, holdout=2)
    assert [len(split.fine) for split in source.splits] == [12, 6]
    aside = {label: of(source, 1, label) for label in CLASSES}
    assert all(len(names) == 2 for names in aside.values())
    shutil.rmtree(folder / "train/cat")
    draw(folder / "train/dog/new.txt.png", 999)
    assert of(folder_source(folder, holdout=2), 1, "Vögel") == aside["Vögel"], "another class changes nothing"
    assert not said()


def test_classes_may_lie_in_the_folder_itself(folder: Path) -> None:
    named = folder_source(folder / "train", holdout=1)
    shutil.move(folder / "train/dog", folder / "dog")
    (folder / "train/dog").symlink_to(folder / "dog")
    shutil.move(folder / "test", folder / "train/test")
    beside = folder_source(folder / "train")
    assert named.fine_names == beside.fine_names == ("Vögel", "cat", "dog")
    assert len(beside.splits[1].fine) == 6


def test_a_size_scales_the_shorter_side_and_cuts_the_middle(tmp_path: Path, said: Said) -> None:
    """Of a wide image whose left and right quarters are of another colour than its middle."""
    pixels = np.zeros((16, 32, 3), np.uint8)
    pixels[:, 8:24] = 200
    for name in ("train/a/0.png", "test/a/0.png"):
        (tmp_path / name).parent.mkdir(parents=True)
        Image.fromarray(pixels).save(tmp_path / name)
    assert (folder_source(tmp_path, size=8).splits[0].images > 180).all()
    assert "there is one class, a: a generator can learn from it" in said()
    assert folder_source(tmp_path, size=20).image_size == (20, 20)
    assert "2 of 2 images are smaller than 20 pixels, and were enlarged" in said()


def test_the_same_image_in_train_and_test_is_counted(folder: Path, said: Said) -> None:
    Image.open(folder / "train/cat/0.png").save(folder / "test/dog/again.bmp")
    folder_source(folder)
    assert (
        "1 of the 7 images of test lie in train, too, such as test/dog/again.bmp, which is train/cat/0.png there"
        in said()
    )


def test_what_is_left_out_is_said(folder: Path, said: Said) -> None:
    (folder / "train/cat/._0.png").write_bytes(b"what macOS leaves")
    (folder / "train/.cache").mkdir()
    (folder / "train/.cache/x.png").write_bytes(b"")
    (folder / "train/cat/Thumbs.db").write_bytes(b"")
    draw(folder / "train/lost.png", 1)
    (folder / "train/empty").mkdir()
    shutil.rmtree(folder / "test/cat")
    source = folder_source(folder)
    assert len(source.splits[0].fine) == 18
    lines = said().splitlines()
    assert "train: 2 hidden files are left out, such as .cache/x.png" in lines[0]
    assert "train: 2 files are left out, such as cat/Thumbs.db: they are no images by their names" in lines[1]
    assert "train: 1 folders without images are no classes, such as empty" in lines[2]
    assert "1 classes have no images in test, such as cat" in lines[3]


def test_names_too_long_for_a_sample_are_cut(folder: Path, tmp_path: Path) -> None:
    draw(folder / "train/cat" / ("長" * 60 + ".png"), 7)
    manifest = build_shards("folder", tmp_path / "shards", source=folder)
    content = b"".join((tmp_path / "shards" / shard.name).read_bytes() for shard in manifest.split("train").shards)
    assert b"\\u9577.png" in content


def _nothing(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()


def _no_folder(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.write_bytes(b"")


def _no_classes(folder: Path) -> None:
    for path in (folder / "train").rglob("*.*"):
        path.rename(folder / "train" / f"{path.parent.name}-{path.name}")


def _damaged(folder: Path) -> None:
    for name in ("dog/0.png", "dog/1.bmp"):
        path = folder / "train" / name
        path.write_bytes(path.read_bytes()[:60])


REFUSED: dict[str, tuple[Callable[[Path], object], dict[str, int], str]] = {
    "nothing in it": (_nothing, {}, "holds no images in folders of classes: it needs CLASS/"),
    "a file": (_no_folder, {}, "is not a folder. Name one that holds train/CLASS/ with images"),
    "no classes": (_no_classes, {}, "train holds no images in folders of classes"),
    "no test": (lambda folder: shutil.rmtree(folder / "test"), {}, "has no images in test/.*: --holdout 20"),
    "test and holdout": (lambda _: None, {"holdout": 2}, r"--holdout 2 has no effect: .*test holds 6 images"),
    "all set aside": (
        lambda folder: shutil.rmtree(folder / "test"),
        {"holdout": 6},
        "--holdout 6 leaves nothing to train on of class 'Vögel', which has 6 images. Set fewer aside: --holdout 1",
    ),
    "a class of test alone": (
        lambda folder: (folder / "test/cat").rename(folder / "test/cats"),
        {},
        "test has 1 classes that .*train lacks, such as 'cats', did you mean 'cat'",
    ),
    "two sizes": (
        lambda folder: draw(folder / "train/cat/0.png", 1, (40, 30)),
        {},
        r"the images have 2 sizes: .* is 12 x 10, .*train/cat/0.png 40 x 30\. .*: --size 32",
    ),
    "damaged": (_damaged, {}, r"2 of 24 files cannot be read; the first: cannot read .*dog/0.png as an image"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_makes_no_data_set_is_refused_in_one_line(what: str, folder: Path, tmp_path: Path) -> None:
    change, options, message = REFUSED[what]
    change(folder)
    with pytest.raises(DataError, match=message) as caught:
        build_shards("folder", tmp_path / "shards", source=folder, **options)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "shards" / MANIFEST_NAME).exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dataset": "folder"}, "--data folder needs --source"),
        ({"dataset": "synthetic", "size": 8}, "--size has no effect with --data synthetic"),
        ({"dataset": "synthetic", "holdout": 8}, "--holdout has no effect with --data synthetic"),
        ({"dataset": "folder", "name": "cifar10"}, "the name cifar10 is that of another data set"),
        ({"dataset": "folder", "name": "a/b"}, "--name 'a/b': a name consists of letters"),
        ({"dataset": "foldr"}, "unknown data set 'foldr', did you mean 'folder'.; there are: folder, cifar10"),
    ],
)
def test_options_that_do_not_fit_are_refused(
    arguments: dict[str, object], message: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    if "name" in arguments:
        arguments = {**arguments, "source": folder}
    with pytest.raises(DataError, match=message):
        build_shards(**arguments)  # type: ignore[arg-type]
    assert not Path("shards").exists()

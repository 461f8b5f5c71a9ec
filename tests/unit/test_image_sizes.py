"""Other sizes than 32 x 32, other numbers of classes than 100, and no superclasses: in shards and networks."""

import io
import json
from contextlib import nullcontext
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
import webdataset as wds
from PIL import Image

from cifarscale.config.load import load_training_recipe
from cifarscale.config.recipe import DataConfig
from cifarscale.config.registry import DataSpec
from cifarscale.data.manifest import Manifest
from cifarscale.data.normalisation import training_normalisation
from cifarscale.data.shards import find_damage, read_split, sample_key, write_shards
from cifarscale.data.source import Source, Split
from cifarscale.data.streaming import StreamedSplit, StreamingReader
from cifarscale.distributed.ranks import Ranks
from cifarscale.errors import ConfigError
from cifarscale.evaluation.accuracy import Accuracy
from cifarscale.tasks.base import task_of
from cifarscale.tasks.classifier.learner import build_classifier
from cifarscale.tasks.classifier.section import _confusion, _written
from cifarscale.tasks.classifier.wandb_tables import by_class, by_group
from cifarscale.tasks.gan.learner import build_networks
from cifarscale.tasks.generator_section import _for_page
from cifarscale.tasks.training import TrainingTask
from cifarscale.tracking.parts import Matrix
from cifarscale.tracking.samples import save_grid

CPU = torch.device("cpu")
SIZES = [(8, 8), (16, 16), (17, 40), (48, 48)]


def made(size: tuple[int, int], num_train: int = 40, num_test: int = 9, num_classes: int = 3) -> Source:
    random = np.random.default_rng(0)
    splits = []
    for name, count in (("train", num_train), ("test", num_test)):
        images = random.integers(0, 256, (count, *size, 3), np.uint8)
        splits.append(Split(name, images, np.arange(count) % num_classes))
    return Source("odd", tuple(f"class {i}" for i in range(num_classes)), (), tuple(splits))


def manifest_of(size: tuple[int, int], folder: Path, num_classes: int = 3) -> Manifest:
    return write_shards(made(size, num_classes=num_classes), folder, 3, lambda _: None)


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_every_reader_gives_images_of_the_set_s_size(size: tuple[int, int], tmp_path: Path) -> None:
    source = made(size)
    manifest = write_shards(source, tmp_path, 3, lambda _: None)
    assert manifest == Manifest.load(tmp_path)
    assert manifest.spec == DataSpec(3, (3, *size))
    assert not find_damage(tmp_path, manifest)
    samples = read_split(tmp_path, manifest, "train")
    np.testing.assert_array_equal(samples.images, source.splits[0].images)
    np.testing.assert_array_equal(samples.labels, source.splits[0].fine)
    for chunk in StreamedSplit(tmp_path, manifest, "test").chunks(Ranks(), 5):
        np.testing.assert_array_equal(chunk.images.permute(0, 2, 3, 1), source.splits[1].images[chunk.rows])
    reader = StreamingReader(tmp_path, manifest.split("train"), 0, 8, DataConfig(canonical_partitions=2))
    for batch in islice(reader.batches(0), 5):
        np.testing.assert_array_equal(batch.images.permute(0, 2, 3, 1), source.splits[0].images[batch.ids])


def test_plain_webdataset_reads_them(tmp_path: Path) -> None:
    source = made((17, 40))
    manifest = write_shards(source, tmp_path, 2, lambda _: None)
    urls = [str(tmp_path / entry.name) for entry in manifest.split("test").shards]
    for i, (key, image, label, about) in enumerate(
        wds.WebDataset(urls, shardshuffle=False).decode("rgb8").to_tuple("__key__", "ppm", "cls", "json")
    ):
        assert (key, label) == (sample_key("test", i), i % 3)
        assert about == {"fine": i % 3, "fine_name": f"class {i % 3}"}, "no superclass, and no name of a file"
        np.testing.assert_array_equal(image, source.splits[1].images[i])


def test_a_manifest_without_a_size_means_32(tmp_path: Path) -> None:
    manifest = manifest_of((32, 32), tmp_path)
    values = json.loads((tmp_path / "manifest.json").read_text())
    assert "image_size" not in values
    assert "drawn_by" not in values
    assert manifest.spec.image_shape == (3, 32, 32)


def test_who_drew_it_is_no_part_of_what_it_is(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    one = manifest_of((16, 16), tmp_path / "a")
    other = write_shards(made((16, 16)), tmp_path / "b", 3, lambda _: None, "123abc")
    assert Manifest.load(tmp_path / "b").drawn_by == "123abc"
    assert one.fingerprint == other.fingerprint
    assert one != other


def test_a_colour_that_never_varies_is_left_finite(tmp_path: Path) -> None:
    source = made((8, 8))
    for split in source.splits:
        split.images[..., 1] = 77
    manifest = write_shards(source, tmp_path, 2, lambda _: None)
    normalised = training_normalisation(manifest, CPU)(torch.from_numpy(source.splits[0].images).permute(0, 3, 1, 2))
    assert normalised.isfinite().all()
    assert normalised[:, 1].abs().max() < 1e-3


NETWORKS = [
    (),
    ("model.attention=self_attention", "model.residual=true", "model.normalisation=batch"),
    ("model.name=resnet",),
]


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("overrides", NETWORKS, ids=lambda overrides: overrides[0] if overrides else "default")
def test_classifiers_take_images_of_any_size_from_8(
    overrides: tuple[str, ...], size: tuple[int, int], tmp_path: Path
) -> None:
    manifest = manifest_of(size, tmp_path)
    recipe = load_training_recipe("cnn", overrides)
    check(recipe, manifest.spec)
    network = build_classifier(recipe, manifest, CPU)  # type: ignore[arg-type]
    images = torch.zeros(2, *manifest.spec.image_shape)
    assert network(images).shape == (2, 3)
    assert network.features(images).ndim == 2  # type: ignore[operator]


@pytest.mark.parametrize("side", [8, 16, 32, 64])
@pytest.mark.parametrize("layers", [("transposed", "strided"), ("residual", "residual")], ids=lambda layers: layers[0])
def test_a_gan_makes_images_of_the_set_s_size(layers: tuple[str, str], side: int, tmp_path: Path) -> None:
    manifest = manifest_of((side, side), tmp_path)
    up, down = layers
    overrides = (f"model.upsampling={up}", f"model.downsampling={down}", "model.conditional=true")
    recipe = load_training_recipe("dcgan", (*overrides, "model.generator_width=4", "model.discriminator_width=4"))
    check(recipe, manifest.spec)
    generator, discriminator = build_networks(recipe, manifest, CPU)  # type: ignore[arg-type]
    labels = torch.tensor([0, 2])
    images = generator(torch.zeros(2, 100), labels)
    assert images.shape == (2, 3, side, side)
    assert discriminator(images, labels).shape == (2,)


def check(recipe: object, data: DataSpec, metric: str = "") -> None:
    task = task_of(recipe)  # type: ignore[arg-type]
    assert isinstance(task, TrainingTask)
    task.check_data(recipe, data, metric)


@pytest.mark.parametrize(
    ("recipe", "overrides", "data", "message"),
    [
        (
            "cnn",
            (),
            DataSpec(3, (3, 7, 40)),
            "'small_filters_cnn' takes images of 8 x 8 pixels and more, and .* 40 x 7",
        ),
        (
            "resnet",
            (),
            DataSpec(3, (3, 40, 7)),
            "'resnet' takes images of 8 x 8 pixels and more, and these have 7 x 40",
        ),
        ("cnn", (), DataSpec(1), "a classifier needs two classes or more, and the data set has 1"),
        ("cnn", ("augmentation.crop_padding=9",), DataSpec(2, (3, 16, 20)), "crop_padding = 9 is too .*: at most 8"),
        (
            "cnn",
            ("augmentation.cutout=33",),
            DataSpec(100),
            "cutout = 33 is too much for images of 32 x 32: at most 32",
        ),
        ("dcgan", (), DataSpec(3, (3, 48, 48)), "squares of 8, 16, 32, 64, 128, 256 pixels a side, .* have 48 x 48"),
        ("dcgan", (), DataSpec(3, (3, 32, 16)), "squares of .* have 16 x 32"),
        ("flow", (), DataSpec(3, (3, 30, 32)), "halves images 2 times, and .* have 32 x 30 pixels, .* multiples of 4"),
    ],
)
def test_what_a_network_cannot_take_is_refused(
    recipe: str, overrides: tuple[str, ...], data: DataSpec, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        check(load_training_recipe(recipe, overrides), data)


def test_larger_images_may_be_cropped_further() -> None:
    check(
        load_training_recipe("cnn", ("augmentation.crop_padding=32", "augmentation.cutout=64")),
        DataSpec(3, (3, 64, 64)),
    )


@pytest.mark.parametrize(("num_classes", "has_top5"), [(2, False), (5, False), (6, True)])
def test_top5_is_left_out_where_it_is_always_1(num_classes: int, has_top5: bool) -> None:
    """And no sweep can compare by it."""
    recipe, metric = load_training_recipe("cnn"), "validation_top5"
    with nullcontext() if has_top5 else pytest.raises(ConfigError, match="Take validation_top1"):
        check(recipe, DataSpec(num_classes), metric)
    labels = torch.tensor([0, 1])
    accuracy = Accuracy(labels, labels, torch.ones(2, dtype=torch.bool), torch.zeros(2), num_classes)
    assert ("top5" in accuracy.metrics) == has_top5


def test_tables_have_classes_where_there_are_no_superclasses() -> None:
    confusion = {"classes": ["a", "b"], "superclasses": [], "superclass_of_class": [], "matrix": [[3, 1], [0, 2]]}
    assert by_group(confusion) == [["a", "a", 3], ["a", "b", 1], ["b", "a", 0], ["b", "b", 2]]
    assert by_class(confusion) == [["a", 4, 0.75], ["b", 2, 1.0]]
    above = confusion | {"superclasses": ["all"], "superclass_of_class": [0, 0]}
    assert by_group(above) == [["all", "all", 6]]
    assert by_class(above)[0] == ["a", "all", 4, 0.75]


@pytest.mark.parametrize("num_classes", [3, 40, 41])
def test_a_page_has_no_table_of_too_many_classes(num_classes: int, tmp_path: Path) -> None:
    """Computed now, or read from what the run wrote."""
    names = [f"class_{i}" for i in range(num_classes)]
    matrix = torch.eye(num_classes, dtype=torch.int64)
    confusion = {"classes": names, "superclasses": [], "superclass_of_class": [], "matrix": matrix.tolist()}
    (tmp_path / "confusion-test.json").write_text(json.dumps(confusion))
    written = _written(tmp_path / "confusion-test.json")
    assert written is not None
    for section in (_confusion(matrix, names, (), (), "the test split"), written):
        if num_classes > 40:
            assert section.block is None
            assert section.note.startswith("41 classes are too many for a table here")
        else:
            assert isinstance(section.block, Matrix)
            assert section.block.names == [f"class {i}" for i in range(num_classes)]
            assert section.block.caption.startswith("Percent of each class (row)")


def test_a_large_grid_is_scaled_down_for_a_page(tmp_path: Path) -> None:
    for side in (32, 128):
        save_grid(np.zeros((64, side, side, 3), np.uint8), 8, tmp_path / f"{side}.png")
    assert _for_page(tmp_path / "32.png") == (tmp_path / "32.png").read_bytes()
    assert Image.open(io.BytesIO(_for_page(tmp_path / "128.png"))).size == (640, 640)

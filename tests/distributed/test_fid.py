"""`cifarscale fid`: exact over ranks and batch sizes, equal to pytorch-fid, honest about names, clear about errors."""

import hashlib
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from inception_weights import random_inception_weights
from numpy.typing import NDArray
from PIL import Image
from pytorch_fid import fid_score, inception
from runs import generate, run_recipe

from cifarscale.cli.main import main
from cifarscale.config.distance import DistanceConfig
from cifarscale.config.load import load_training_recipe
from cifarscale.data.images import ImageSet, images_of_split
from cifarscale.data.manifest import Manifest
from cifarscale.data.shards import read_split
from cifarscale.distributed.cpu_pool import CpuPool
from cifarscale.distributed.group import Group
from cifarscale.distributed.ranks import Ranks
from cifarscale.errors import DistributedError
from cifarscale.evaluation import distance
from cifarscale.evaluation.distance import Measure
from cifarscale.evaluation.features import FeatureNetwork
from cifarscale.runs.options import RunOptions
from cifarscale.tasks.distance.reference import Reference, open_reference
from cifarscale.tasks.training import resolve

pytestmark = pytest.mark.distributed
Function = Callable[..., Any]

NUM_INCEPTION = 20
"""Images of each set that go through Inception: it takes a core a tenth of a second for each."""
EXACT = ("--allow-few-samples", "--no-kernel", "--no-neighbours")
CPU = torch.device("cpu")


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A cache of our own."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("XDG_CACHE_HOME", str(folder))
        yield folder / "cifarscale" / "statistics"


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "random.pth"
    random_inception_weights(path, seed=0)
    return path


def save_images(folder: Path, images: NDArray[np.uint8]) -> Path:
    folder.mkdir()
    for i, image in enumerate(images):
        Image.fromarray(image).save(folder / f"{i:03d}.png")
    return folder


@pytest.fixture(scope="module")
def folders(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Drawn images, and the same kind with noise on them, as PNG."""
    images = read_split(shards, Manifest.load(shards), "test").images
    noise = np.random.default_rng(0).integers(-60, 60, images.shape)
    noisy = np.clip(images + noise, 0, 255).astype(np.uint8)
    base = tmp_path_factory.mktemp("images")
    half = NUM_INCEPTION
    return save_images(base / "real", images[:half]), save_images(base / "noisy", noisy[half : 2 * half])


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory, train_here: Function) -> Path:
    """A run whose classifier has 256 features."""
    run: Path = train_here(tmp_path_factory.mktemp("runs") / "classifier").path
    return run


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory, train_here: Function) -> Path:
    """A run whose classifier has 64 features: fewer than the set has images."""
    run: Path = train_here(tmp_path_factory.mktemp("runs") / "narrow", "model.width=1").path
    return run


def train_generator(folder: Path, shards: Path, *overrides: str) -> Path:
    settings = (
        *("training.max_steps=6", "training.global_batch_size=16", "training.checkpoint_every=3"),
        *("model.generator_width=4", "model.discriminator_width=4", "evaluation.every=3"),
    )
    run_recipe(
        resolve(load_training_recipe("dcgan", (*settings, *overrides)), shards), folder, RunOptions(shards, "cpu")
    )
    return folder


@pytest.fixture(scope="module")
def generator(tmp_path_factory: pytest.TempPathFactory, shards: Path) -> Path:
    return train_generator(tmp_path_factory.mktemp("runs") / "generator", shards)


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, ["fid", *map(str, arguments), "--device", "cpu"])


def on(shards: Path) -> tuple[str | Path, ...]:
    """The arguments that name the test's own set."""
    return ("--data", shards)


def measured(path: Path, *arguments: str | Path) -> dict[str, Any]:
    """The figures that `cifarscale fid` writes."""
    done = run(*arguments, "--out", path)
    assert done.exit_code == 0, done.output
    figures: dict[str, Any] = json.loads(path.read_text())
    return figures


def refused(*arguments: str | Path) -> str:
    """The one line of a refusal."""
    done = run(*arguments)
    assert done.exit_code == 1, done.output
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    assert not done.stdout
    return lines[0]


def reference(run: Path, shards: Path, **config: Any) -> Reference:
    """What a classifier's features are compared with, by default the test split."""
    pool = CpuPool(one_core_each=True, num_cores=1)
    config = {"features": f"cnn:{run}", "against": "test", **config}
    return open_reference(DistanceConfig(**config), shards, 200, False, Group(Ranks()), pool, CPU)


@pytest.fixture
def no_distance(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests of what lies around the distance, which over 2,048 features takes seconds."""
    monkeypatch.setattr(distance, "frechet_distance", lambda a, b: float((a.mean - b.mean).square().sum()))


# Inception: equal to pytorch-fid, and to itself


@pytest.fixture(scope="module")
def statistics(folders: tuple[Path, Path], weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The real images' statistics, as `--save-statistics` leaves them."""
    path = tmp_path_factory.mktemp("statistics") / "real.npz"
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(distance, "frechet_distance", lambda a, b: 0.0)
        measured(path.with_suffix(".json"), folders[0], "--against", folders[0], "--weights", weights, *EXACT,
                 "--save-statistics", path)  # fmt: skip
    return path


def test_its_statistics_are_those_of_pytorch_fid(
    folders: tuple[Path, Path], weights: Path, statistics: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From which both compute the distance; test_frechet.py compares their formulas."""
    state = torch.load(weights, weights_only=True)
    monkeypatch.setattr(inception, "load_state_dict_from_url", lambda *_, **__: state)
    theirs = fid_score.compute_statistics_of_path(
        str(folders[0]), fid_score.InceptionV3([3]).eval(), 10, 2048, "cpu", num_workers=0
    )
    with np.load(statistics) as saved:
        np.testing.assert_allclose(saved["mu"], theirs[0], rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(saved["sigma"], theirs[1], rtol=1e-3, atol=1e-4 * np.abs(theirs[1]).max())
        mean, covariance = fid_score.compute_statistics_of_path(str(statistics), None, 10, 2048, "cpu", 0)
        assert np.array_equal(mean, saved["mu"])
        assert np.array_equal(covariance, saved["sigma"])


@pytest.mark.thorough
def test_it_equals_pytorch_fid(
    folders: tuple[Path, Path], weights: Path, statistics: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole of it: pytorch-fid's root of a matrix takes a minute."""
    state = torch.load(weights, weights_only=True)
    monkeypatch.setattr(inception, "load_state_dict_from_url", lambda *_, **__: state)
    theirs = fid_score.calculate_fid_given_paths(list(map(str, folders)), 10, "cpu", 2048, num_workers=0)
    ours = measured(tmp_path / "ours.json", folders[1], "--against", folders[0], "--weights", weights, *EXACT)
    assert ours["distance"] == pytest.approx(theirs, rel=1e-3)
    again = measured(tmp_path / "npz.json", folders[1], "--against", statistics, "--weights", weights, *EXACT)
    assert again["distance"] == ours["distance"]


@pytest.mark.parametrize(
    ("size", "nproc"),
    [
        (7, 2),
        *(pytest.param(size, nproc, marks=pytest.mark.thorough) for size, nproc in ((1, 1), (7, 1), (50, 1), (7, 4))),
    ],
)
def test_it_equals_itself_for_any_batch_size_and_number_of_processes(
    folders: tuple[Path, Path],
    weights: Path,
    statistics: Path,
    tmp_path: Path,
    cifarscale: Function,
    size: int,
    nproc: int,
) -> None:
    arguments = (folders[1], "--against", statistics, "--weights", weights, *EXACT)
    whole = measured(tmp_path / "256.json", *arguments, "--batch-size", "256")["distance"]
    path = tmp_path / "other.json"
    more = ("--batch-size", str(size), "--nproc", str(nproc), "--device", "cpu", "--out", path)
    done = cifarscale("fid", *arguments, *more)
    assert done.returncode == 0, done.stderr
    assert json.loads(path.read_text())["distance"] == pytest.approx(whole, rel=1e-6)


def test_only_with_pytorch_fids_own_weights_is_it_called_fid(
    folders: tuple[Path, Path], weights: Path, statistics: Path, classifier: Path, tmp_path: Path, no_distance: None
) -> None:
    arguments = (folders[1], "--against", statistics, "--weights", weights, *EXACT)
    assert re.fullmatch(
        r"Fréchet distance \(Inception, weights [0-9a-f]{8}\)", measured(tmp_path / "a.json", *arguments)["metric"]
    )
    few = (folders[1], "--against", folders[0], "--features", f"cnn:{classifier}", *EXACT)
    assert measured(tmp_path / "b.json", *few)["metric"] == "Fréchet distance (cnn:classifier)"


# The features of a classifier


def test_a_runs_images_are_measured_on_any_number_of_processes(
    generator: Path, narrow: Path, shards: Path, tmp_path: Path, cifarscale: Function
) -> None:
    options = ("--features", f"cnn:{narrow}", "--num-samples", "300", "--seed", "5", "--batch-size", "50")
    arguments = (*options, *on(shards))
    found = measured(tmp_path / "1.json", generator, *arguments)
    assert (found["step"], found["seed"], found["num_samples"], found["num_real"]) == (6, 5, 300, 507)
    assert found["against"] == "synthetic train"
    assert found["distance"] > 0
    assert found["kernel_distance_standard_error"] > 0
    assert 0 <= found["precision"] <= 1
    assert 0 <= found["recall"] <= 1
    for nproc in (2, 3):
        path = tmp_path / f"{nproc}.json"
        done = cifarscale("fid", generator, *arguments, "--nproc", str(nproc), "--device", "cpu", "--out", path)
        assert done.returncode == 0, done.stderr
        other = json.loads(path.read_text())
        for key in ("distance", "kernel_distance", "kernel_distance_standard_error", "precision", "recall"):
            assert other[key] == found[key], key


def test_a_runs_images_are_those_that_generate_saves(
    generator: Path, narrow: Path, shards: Path, tmp_path: Path
) -> None:
    saved = save_images(tmp_path / "images", generate(generator, 100, 3, CPU))
    features = ("--features", f"cnn:{narrow}", *on(shards))
    from_run = measured(tmp_path / "run.json", generator, *features, "--num-samples", "100", "--seed", "3")
    from_files = measured(tmp_path / "files.json", saved, *features)
    for key in ("distance", "kernel_distance", "precision", "recall"):
        assert from_files[key] == pytest.approx(from_run[key], rel=1e-9), key


def test_the_same_images_are_at_distance_0_and_worse_ones_are_farther(
    narrow: Path, shards: Path, folders: tuple[Path, Path], tmp_path: Path
) -> None:
    images = read_split(shards, Manifest.load(shards), "test").images
    whole = save_images(tmp_path / "test", images)
    noise = np.random.default_rng(0).integers(-80, 80, images.shape)
    noisy = save_images(tmp_path / "noisy", np.clip(images + noise, 0, 255).astype(np.uint8))
    features = ("--features", f"cnn:{narrow}", *on(shards))
    same = measured(tmp_path / "same.json", "test", *features, "--against", "test")
    near = measured(tmp_path / "near.json", whole, *features, "--against", "train")
    far = measured(tmp_path / "far.json", noisy, *features, "--against", "train")
    assert same["distance"] == pytest.approx(0, abs=1e-6)
    assert (same["precision"], same["recall"]) == (1, 1)
    assert same["distance"] < near["distance"] < far["distance"] / 5
    assert near["kernel_distance"] < far["kernel_distance"]


def test_figures_that_are_not_wanted_are_left_out(narrow: Path, shards: Path, generator: Path, tmp_path: Path) -> None:
    arguments = (generator, "--features", f"cnn:{narrow}", "--num-samples", "100", *on(shards))
    every = {"distance", "kernel_distance", "kernel_distance_standard_error", "precision", "recall"}
    for without, gone in (
        ("--no-kernel", {"kernel_distance", "kernel_distance_standard_error"}),
        ("--no-neighbours", {"precision", "recall"}),
    ):
        found = set(measured(tmp_path / "x.json", *arguments, without))
        assert found & every == every - gone


def test_a_run_keeps_its_figures_and_shows_them(narrow: Path, shards: Path, generator: Path) -> None:
    shown = run(generator, "--features", f"cnn:{narrow}", "--num-samples", "100", *on(shards))
    assert shown.exit_code == 0, shown.output
    assert "Fréchet distance (cnn:narrow)" in shown.stdout
    assert "100 images against 507 of synthetic train" in shown.stdout
    assert json.loads((generator / "distance-cnn-narrow-train.json").read_text())["num_samples"] == 100


def test_fast_says_how_far_it_is_from_exact(narrow: Path, shards: Path, generator: Path, tmp_path: Path) -> None:
    arguments = (generator, "--features", f"cnn:{narrow}", "--num-samples", "300", *on(shards))
    exact = measured(tmp_path / "exact.json", *arguments)
    fast = measured(tmp_path / "fast.json", *arguments, "--precision", "fast")
    assert fast["computed"] == "fast"
    assert fast["distance"] != exact["distance"]
    assert fast["distance"] == pytest.approx(exact["distance"], rel=0.05)
    assert "on_sample" not in exact
    sample = fast["on_sample"]
    assert sample["num_samples"] == 128
    deviation = fast["distance"] / exact["distance"] - 1
    assert sample["fast"] / sample["exact"] - 1 == pytest.approx(deviation, abs=0.01)
    assert "deviation from exact, on 128 images of each" in run(*arguments, "--precision", "fast").stdout


# Each image once


class Dropping(Measure):
    """Leaves the last image out, or takes the first one twice."""

    twice = False

    def _batches(self, total: int) -> Any:
        *batches, (number, rows) = super()._batches(total)
        last = (number, rows) if self.twice else (number, range(rows.start, rows.stop - 1))
        yield from (*batches, last, *([(number + 1, range(1))] if self.twice else []))


@pytest.mark.parametrize("twice", [False, True])
def test_an_image_dropped_or_doubled_is_noticed(narrow: Path, shards: Path, twice: bool) -> None:
    features = reference(narrow, shards).measure.features
    measure = Dropping(DistanceConfig(), features, Group(Ranks()), CpuPool(one_core_each=True, num_cores=1), CPU)
    measure.twice = twice
    images = images_of_split(shards, Manifest.load(shards), "test", CPU)
    with pytest.raises(DistributedError, match=f"the first is row {0 if twice else 199}, counted {2 * twice} times"):
        measure.collect(images)


def test_one_image_more_or_less_changes_the_moments(narrow: Path, shards: Path) -> None:
    measure = reference(narrow, shards).measure
    images = images_of_split(shards, Manifest.load(shards), "test", CPU)
    fewer = ImageSet("fewer", images.num_images - 1, images.images)
    one, other = measure.collect(images).statistics, measure.collect(fewer).statistics
    assert (one.num_samples, other.num_samples) == (200, 199)
    assert float((one.mean - other.mean).abs().max()) > 1e-6


# The cache


def test_real_images_are_run_through_the_network_once_for_each_network(
    narrow: Path, classifier: Path, shards: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.rmtree(cache, ignore_errors=True)
    collected = []
    collect = Measure.collect
    monkeypatch.setattr(Measure, "collect", lambda self, *more: collected.append(1) or collect(self, *more))
    for network, config, computed in (
        (narrow, {}, True),
        (narrow, {}, False),
        (narrow, {"precision": "fast"}, True),
        (narrow, {"against": "train"}, True),
        (narrow, {"num_kept": 50}, True),
        (classifier, {"allow_few_samples": True}, True),
        (narrow, {}, False),
    ):
        collected.clear()
        reference(network, shards, **config)
        assert bool(collected) == computed, (network, config)


def test_a_damaged_or_foreign_file_in_the_cache_is_not_used(narrow: Path, shards: Path, cache: Path) -> None:
    arguments = (narrow, shards)
    shutil.rmtree(cache, ignore_errors=True)
    whole = reference(*arguments).real.statistics
    (path,) = cache.iterdir()
    kept = path.read_bytes()
    path.write_bytes(kept[: len(kept) // 2])
    assert torch.equal(reference(*arguments).real.statistics.mean, whole.mean)
    foreign = reference(*arguments, against="train")
    (other,) = set(cache.iterdir()) - {path}
    path.write_bytes(other.read_bytes())
    again = reference(*arguments)
    assert torch.equal(again.real.statistics.mean, whole.mean)
    assert not torch.equal(again.real.statistics.mean, foreign.real.statistics.mean)


# Classes


def test_distances_by_class_are_those_of_the_classes_alone(shards: Path) -> None:
    images = images_of_split(shards, Manifest.load(shards), "train", CPU)
    labels = torch.arange(images.num_images) % 4
    features = FeatureNetwork("colours", "0", "none", 3, lambda pixels: pixels.float().mean((2, 3)))
    measure = Measure(DistanceConfig(), features, Group(Ranks()), CpuPool(one_core_each=True, num_cores=1), CPU)
    brighter = ImageSet("brighter", 507, lambda rows: images.images(rows).clamp(min=40), labels)
    real = measure.collect(ImageSet("real", 507, images.images, labels), 4)
    found = measure.metrics(real, measure.collect(brighter, 4), ("a", "b", "c", "d"))
    for label, name in enumerate("abcd"):
        rows = (labels == label).nonzero().flatten().tolist()

        def of_class(source: ImageSet, rows: list[int] = rows) -> Any:
            pixels = torch.cat([source.images(range(row, row + 1)) for row in rows])
            return measure.collect(ImageSet("class", len(rows), lambda part: pixels[part.start : part.stop]))

        alone = measure.frechet(of_class(images), of_class(brighter))
        assert found["classes"][name] == pytest.approx(alone, rel=1e-9)
    few = measure.collect(ImageSet("few", 507, images.images, torch.arange(507) // 3), 169)
    assert few.by_class == (None,) * 169


def test_a_conditional_generator_says_why_its_classes_are_left_out(
    narrow: Path, shards: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_dir = train_generator(tmp_path / "conditional", shards, "model.conditional=true")
    found = run(run_dir, "--features", f"cnn:{narrow}", *on(shards), "--num-samples", "700")
    assert found.exit_code == 0, found.output
    assert (
        "distances by class are left out: they need more than 64 images of each class, and there are 5" in found.stderr
    )


# During training


def test_a_training_measures_itself_and_the_same_on_two_ranks(
    narrow: Path, shards: Path, tmp_path: Path, cifarscale: Function, opened: Function
) -> None:
    settings = (
        *("distance.every=4", "distance.num_samples=100", f"distance.features=cnn:{narrow}", "evaluation.every=4"),
        *("training.max_steps=8", "training.global_batch_size=16", "training.checkpoint_every=2"),
        *("model.generator_width=4", "model.discriminator_width=4"),
    )
    sets = [part for setting in settings for part in ("--set", setting)]

    def arguments(folder: str, nproc: int) -> tuple[str | Path, ...]:
        return ("train", "dcgan", "--data", shards, "--run-dir", tmp_path / folder, "--nproc", str(nproc), *sets)

    for folder, nproc in (("one", 1), ("two", 2)):
        done = cifarscale(*arguments(folder, nproc))
        assert done.returncode == 0, done.stderr
    one, two = opened(tmp_path / "one"), opened(tmp_path / "two")
    measured_at = [line["step"] for line in one.metrics() if "frechet_distance" in line]
    assert measured_at == [4, 8]
    assert one.metrics() == two.metrics()
    result = one.result()["distance"]
    assert result["metric"] == "Fréchet distance (cnn:narrow)"
    assert result["distance"] == one.metrics()[-1]["frechet_distance"]
    assert {"precision", "recall", "kernel_distance"} <= set(result)


# Bad input


def test_bad_input_is_refused_in_one_line(
    generator: Path, narrow: Path, shards: Path, folders: tuple[Path, Path], weights: Path, tmp_path: Path
) -> None:
    features = ("--features", f"cnn:{narrow}", *on(shards))
    small = ("--allow-few-samples", *on(shards))
    empty = tmp_path / "empty"
    empty.mkdir()
    uneven = save_images(tmp_path / "uneven", np.zeros((2, 32, 32, 3), np.uint8))
    Image.new("RGB", (64, 48)).save(uneven / "zzz.png")
    broken = save_images(tmp_path / "broken", np.zeros((70, 32, 32, 3), np.uint8))
    (broken / "050.png").write_bytes(b"no image")
    large = tmp_path / "large"
    large.mkdir()
    Image.new("RGB", (64, 64)).save(large / "a.png")
    Image.new("RGB", (64, 64)).save(large / "b.png")
    unfinished = shutil.copytree(generator, tmp_path / "unfinished", ignore=shutil.ignore_patterns("*.pt"))
    wrong = tmp_path / "wrong.pth"
    torch.save({"a": torch.zeros(1)}, wrong)
    shape = torch.load(weights, weights_only=True)
    shape["Conv2d_1a_3x3.conv.weight"] = torch.zeros(1)
    torch.save(shape, tmp_path / "shape.pth")
    noise = tmp_path / "noise.pth"
    noise.write_bytes(b"noise")
    np.savez(tmp_path / "three.npz", mu=np.zeros(3), sigma=np.eye(3))
    np.savez(tmp_path / "other.npz", mean=np.zeros(3))
    np.savez(tmp_path / "shapes.npz", mu=np.zeros(3), sigma=np.eye(4))
    np.savez(tmp_path / "nan.npz", mu=np.full(64, np.nan), sigma=np.eye(64))
    (tmp_path / "text.npz").write_text("text")
    cases: dict[tuple[str | Path, ...], str] = {
        (narrow, *features): "is a run of task 'classifier', and this needs a generator's",
        (unfinished, *features): "has no checkpoint yet. Run: cifarscale train",
        (generator, "--features", f"cnn:{generator}", *on(shards)): "and this needs a classifier's",
        (generator, "--features", f"cnn:{tmp_path}", *on(shards)): "is not a run folder",
        (generator, "--features", "resnet", *on(shards)): "distance.features = 'resnet'",
        (
            generator,
            *features,
            "--num-samples",
            "64",
        ): "over 64 features needs at least 65 measured images, and there are 64",
        (
            generator,
            *features,
            "--against",
            "valid",
        ): "valid is neither a folder nor a split of synthetic; the splits are: train, test",
        (
            generator,
            *features,
            "--against",
            tmp_path / "none.npz",
        ): "none.npz: No such file or directory. Name an .npz with mu and sigma",
        (generator, *features, "--against", tmp_path / "three.npz"): "is of 3 features, and cnn:narrow has 64",
        (generator, *features, "--against", tmp_path / "other.npz"): "holds mean, and lacks mu and sigma",
        (generator, *features, "--against", tmp_path / "text.npz"): "is damaged, or no .npz of numbers",
        (generator, *features, "--against", tmp_path / "shapes.npz"): "do not fit",
        (generator, *features, "--against", tmp_path / "nan.npz"): "values that are not finite",
        (generator, *features, "--weights", weights): "have no effect with features cnn:",
        (generator, *small, "--weights", wrong): "does not hold the weights of pytorch-fid's Inception",
        (generator, *small, "--weights", tmp_path / "shape.pth"): "size mismatch for Conv2d_1a_3x3.conv.weight",
        (generator, *small, "--weights", noise): "is not a file of weights that torch can read",
        (generator, *small, "--weights", tmp_path / "nowhere.pth"): "cannot read the weights",
        ("nowhere", *features): "nowhere is neither a folder nor a split of synthetic",
        (empty, *features): "holds no images",
        (uneven, *features, "--allow-few-samples"): "zzz.png is 64 x 48, and 000.png is 32 x 32",
        (broken, *features): "050.png as an image",
        (large, *features, "--allow-few-samples"): "cnn:narrow takes images of 32 x 32, and these are 64 x 64",
    }
    for arguments, expected in cases.items():
        line = refused(*arguments)
        assert expected in line, line


def test_statistics_of_other_features_are_refused(
    narrow: Path, shards: Path, folders: tuple[Path, Path], tmp_path: Path, train_here: Function
) -> None:
    other = train_here(tmp_path / "other", "model.width=1", "seed=1").path
    path = tmp_path / "saved.npz"
    images = save_images(tmp_path / "images", read_split(shards, Manifest.load(shards), "test").images)
    features = ("--features", f"cnn:{narrow}", *on(shards))
    measured(tmp_path / "x.json", images, *features, "--against", "test", "--save-statistics", path)
    assert measured(tmp_path / "x.json", images, *features, "--against", path)["distance"] == pytest.approx(0, abs=1e-6)
    assert "other weights, preprocessing or precision" in refused(
        images, "--features", f"cnn:{other}", *on(shards), "--against", path
    )


def test_without_a_network_the_weights_are_asked_for(
    generator: Path, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(inception, "FID_WEIGHTS_URL", "http://127.0.0.1:9/weights-0123456789ab.pth")
    line = refused(generator, *on(shards), "--num-samples", "3000")
    assert "cannot fetch Inception's weights from http://127.0.0.1:9/" in line
    assert "--weights FILE" in line
    assert "--features cnn:RUN" in line


def test_the_weights_are_fetched_once_and_their_checksum_is_held(
    folders: tuple[Path, Path],
    weights: Path,
    statistics: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    no_distance: None,
) -> None:
    content = weights.read_bytes()
    digest = hashlib.sha256(content).hexdigest()[:8]
    good = tmp_path / f"weights-{digest}.pth"
    good.write_bytes(content)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    arguments = (folders[1], "--against", statistics, *EXACT)
    monkeypatch.setattr(inception, "FID_WEIGHTS_URL", good.with_name("weights-ffffffff.pth").as_uri())
    good.with_name("weights-ffffffff.pth").write_bytes(content)
    assert "invalid hash value" in refused(*arguments)
    monkeypatch.setattr(inception, "FID_WEIGHTS_URL", good.as_uri())
    first = measured(tmp_path / "first.json", *arguments)
    good.unlink()
    assert measured(tmp_path / "again.json", *arguments)["distance"] == first["distance"]
    (cached,) = (tmp_path / "home").rglob(good.name)
    cached.write_bytes(content[:-1])
    assert "is damaged: its sha256 does not begin with" in refused(*arguments)

"""Flow matching on the same engine: the same promises, with its noise, times, classes and samplers."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from runs import generate, run_recipe

from cifarscale.config.load import load_training_recipe
from cifarscale.data.source import Source
from cifarscale.runs.options import RunOptions
from cifarscale.tasks.load import load_generator
from cifarscale.tasks.training import resolve

pytestmark = pytest.mark.distributed
Function = Callable[..., Any]
CPU = torch.device("cpu")
STEPS = 24
SETTINGS = (
    *(f"training.max_steps={STEPS}", "training.global_batch_size=16", "training.microbatches=4"),
    *("training.log_every=1", "training.checkpoint_every=8", "evaluation.every=12", "sampler.steps=3"),
    *("training.ema_decay=0.9", "training.learning_rate=1e-2", "schedule.warmup_steps=3"),
    *("model.widths=[4, 8]", "model.blocks=[1, 1]", "model.embedding=8"),
    *("distance.num_samples=64", "distance.every=12", "distance.allow_few_samples=true", "distance.kernel=false"),
)


@pytest.fixture(scope="module")
def settings(train_here: Function, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    """The recipe's changes: with distances in the features of a classifier that has been trained for them."""
    classifier = tmp_path_factory.mktemp("runs") / "narrow"
    train_here(classifier)
    return (*SETTINGS, f"distance.features=cnn:{classifier}")


@pytest.fixture(scope="module")
def trained(settings: tuple[str, ...], shards: Path, opened: Function, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The complete run, by one rank in this process; not to be changed."""
    folder = tmp_path_factory.mktemp("trained") / "flow"
    run_recipe(resolve(load_training_recipe("flow", settings), shards), folder, RunOptions(shards, "cpu"))
    return opened(folder)


def command(settings: tuple[str, ...], shards: Path, folder: Path, nproc: int) -> list[str | Path]:
    where = ["--data", shards, "--run-dir", folder, "--nproc", str(nproc), "--device", "cpu"]
    return ["train", "flow", *where, *(argument for setting in settings for argument in ("--set", setting))]


def test_every_bit_is_the_same_on_1_and_2_ranks_and_after_a_kill(
    settings: tuple[str, ...], trained: Any, start: Function, cifarscale: Function, opened: Function, shards: Path,
    tmp_path: Path,
) -> None:  # fmt: skip
    run = opened(tmp_path / "run")
    started = start(*command(settings, shards, run.path, 2))
    run.wait_for_step(9, started.end)
    started.kill()
    done = cifarscale(*command(settings, shards, run.path, 2))
    assert done.returncode == 0, done.stderr
    assert run.result()["world_size"] == 2
    run.assert_same_as(trained)
    assert run.result()["distance"] == trained.result()["distance"]


def test_it_learns_and_reports(trained: Any) -> None:
    lines = [line for line in trained.metrics() if "loss" in line]
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    losses = [line["loss"] for line in lines]
    assert sum(losses[-6:]) < 0.8 * sum(losses[:6])
    assert [line["step"] for line in trained.metrics() if "frechet_distance" in line] == [12, 24]
    assert list(trained.samples()) == ["step-00000012.png", "step-00000024.png"]
    result = trained.result()
    assert result["images"] == STEPS * 16
    forward = result["training_flops"] / (2 * 3 * STEPS * 16)
    assert result["macs"] == forward * 3 * 2 * 2  # 3 steps of Heun's, with the class and without
    assert result["distance"]["distance"] > 0


def test_images_are_those_of_the_averaged_weights(trained: Any) -> None:
    state, loaded = trained.state(), load_generator(trained.path, CPU).network.state_dict()
    assert all(torch.equal(value, state["averages"]["velocity"][key]) for key, value in loaded.items())
    assert not all(torch.equal(value, state["networks"]["velocity"][key]) for key, value in loaded.items())


def test_an_image_depends_on_the_run_the_seed_the_class_and_its_number_alone(
    trained: Any, source: Source, cifarscale: Function, tmp_path: Path
) -> None:
    many, name = generate(trained.path, 70, 1, CPU), source.fine_names[3]
    assert np.array_equal(generate(trained.path, 5, 1, CPU), many[:5])
    of_class = generate(trained.path, 5, 1, CPU, name)
    assert np.array_equal(of_class[3], many[3])
    for other in (of_class[:3], generate(trained.path, 3, 2, CPU)):
        assert not any(np.array_equal(*pair) for pair in zip(other, many, strict=False))
    arguments = ("--num", "5", "--seed", "1", "--device", "cpu", "--out", tmp_path / "images")
    assert cifarscale("generate", trained.path, "--class", name, *arguments).returncode == 0
    assert np.array_equal(np.asarray(Image.open(tmp_path / "images" / "000004.png")), of_class[4])


def test_its_distance_is_measured_on_any_number_of_ranks(
    settings: tuple[str, ...], trained: Any, shards: Path, cifarscale: Function, tmp_path: Path
) -> None:
    found = []
    features = settings[-1].removeprefix("distance.features=")
    for nproc in ("1", "2"):
        out = tmp_path / f"{nproc}.json"
        options = ("--num-samples", "100", "--seed", "5", "--allow-few-samples", "--data", shards, "--device", "cpu")
        done = cifarscale("fid", trained.path, "--features", features, *options, "--nproc", nproc, "--out", out)
        assert done.returncode == 0, done.stderr
        found.append({key: value for key, value in json.loads(out.read_text()).items() if "distance" in key})
    assert found[0] == found[1]
    assert found[0]["distance"] > 0


@pytest.mark.thorough
def test_it_is_exported_from_noise_to_images(trained: Any, cifarscale: Function, tmp_path: Path) -> None:
    done = cifarscale("export", trained.path, "--to", tmp_path / "flow.pt2")
    assert done.returncode == 0, done.stderr
    assert "latents (N, 3072) float32, labels (N,) int64 to images (N, 3, 32, 32) float32" in done.stdout

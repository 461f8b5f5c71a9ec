"""The DCGAN on the same engine: the same promises, with its batch normalisation and its two updates a step."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from runs import generate, learner_context
from torch.nn import functional as F

from cifarscale.config.load import load_training_recipe, with_values
from cifarscale.data.batches import Batch
from cifarscale.data.manifest import published_manifest
from cifarscale.tasks.gan.learner import GanLearner
from cifarscale.tasks.gan.recipe import GanRecipe

pytestmark = pytest.mark.distributed
Function = Callable[..., Any]

SETTINGS = (
    "training.max_steps=12",
    "training.global_batch_size=16",
    "training.microbatches=4",
    "training.log_every=1",
    "training.checkpoint_every=4",
    "training.ema_decay=0.9",
    "model.generator_width=4",
    "model.discriminator_width=4",
    "evaluation.every=6",
    "augmentation.flip=true",
)


def arguments(shards: Path, run_dir: Path, nproc: int = 1, settings: tuple[str, ...] = SETTINGS) -> tuple[str, ...]:
    sets = [item for setting in settings for item in ("--set", setting)]
    run = ("--data", str(shards), "--run-dir", str(run_dir), "--nproc", str(nproc), "--device", "cpu")
    return ("train", "dcgan", *run, *sets)


@pytest.fixture(scope="module")
def recipe() -> GanRecipe:
    recipe = load_training_recipe("dcgan", SETTINGS)
    assert isinstance(recipe, GanRecipe)
    return recipe


@pytest.fixture
def task(recipe: GanRecipe, tmp_path: Path) -> GanLearner:
    return build_task(recipe, tmp_path)


def build_task(recipe: GanRecipe, run_dir: Path) -> GanLearner:
    manifest = published_manifest("cifar100")
    assert manifest is not None
    return GanLearner(recipe, learner_context(manifest, run_dir))


def assert_same(one: Any, other: Any) -> None:
    one.assert_same_as(other)
    assert list(one.samples()) == ["step-00000006.png", "step-00000012.png"]


@pytest.mark.parametrize(
    ("num_microbatches", "ranks"), [pytest.param(4, (2, 4), marks=pytest.mark.thorough), (16, (2, 3, 6))]
)
def test_every_bit_is_the_same_on_any_number_of_ranks(
    num_microbatches: int, ranks: tuple[int, ...], cifarscale: Function, opened: Function, shards: Path, tmp_path: Path
) -> None:
    batch = (f"training.microbatches={num_microbatches}", f"training.global_batch_size={max(16, 2 * num_microbatches)}")
    for nproc in (1, *ranks):
        done = cifarscale(*arguments(shards, tmp_path / str(nproc), nproc, (*SETTINGS, *batch)))
        assert done.returncode == 0, done.stderr
    for nproc in ranks:
        assert_same(opened(tmp_path / "1"), opened(tmp_path / str(nproc)))


def test_killed_and_resumed_ends_as_if_it_had_not_been(
    cifarscale: Function, start: Function, opened: Function, shards: Path, tmp_path: Path
) -> None:
    assert cifarscale(*arguments(shards, tmp_path / "whole")).returncode == 0
    for step in (5, 9):
        started = start(*arguments(shards, tmp_path / "killed"))
        opened(tmp_path / "killed").wait_for_step(step, started.end)
        started.kill()
    assert cifarscale(*arguments(shards, tmp_path / "killed")).returncode == 0
    assert_same(opened(tmp_path / "whole"), opened(tmp_path / "killed"))


def test_with_statistics_of_the_global_batch_two_ranks_are_one_to_rounding(
    cifarscale: Function, opened: Function, shards: Path, tmp_path: Path
) -> None:
    """Batch normalisation of each rank's half is something else; that shows in the first step."""
    losses = {}
    for kind in ("sync_batch", "batch"):
        networks = [f"model.{network}_normalisation={kind}" for network in ("generator", "discriminator")]
        settings = (*SETTINGS, "training.microbatches=0", "training.max_steps=4", *networks)
        for nproc in (1, 2):
            run_dir = tmp_path / f"{kind}-{nproc}"
            done = cifarscale(*arguments(shards, run_dir, nproc, settings))
            assert done.returncode == 0, done.stderr
            losses[kind, nproc] = [line["discriminator_loss"] for line in opened(run_dir).metrics()]
    assert losses["sync_batch", 1] == losses["batch", 1]
    assert losses["sync_batch", 2] == pytest.approx(losses["sync_batch", 1], rel=1e-3)
    assert losses["batch", 2][0] != pytest.approx(losses["batch", 1][0], rel=1e-3)


def test_an_image_depends_on_the_seed_and_its_number_alone(cifarscale: Function, shards: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert cifarscale(*arguments(shards, run)).returncode == 0
    few, many = generate(run, 5, 1, torch.device("cpu")), generate(run, 100, 1, torch.device("cpu"))
    assert np.array_equal(few, many[:5])
    assert not np.array_equal(few, generate(run, 5, 2, torch.device("cpu")))
    assert cifarscale("generate", run, "--num", "5", "--seed", "1", "--out", tmp_path / "images").returncode == 0
    assert np.array_equal(np.asarray(Image.open(tmp_path / "images" / "000004.png")), few[4])
    assert cifarscale("generate", run, "--num", "5", "--out", tmp_path / "grid.png").returncode == 0
    assert Image.open(tmp_path / "grid.png").size == (104, 70)


def test_a_run_of_the_other_kind_is_refused_in_one_line(
    cifarscale: Function, train_here: Function, shards: Path, tmp_path: Path
) -> None:
    assert cifarscale(*arguments(shards, tmp_path / "dcgan")).returncode == 0
    classifier = train_here(tmp_path / "cnn").path
    for command in (("generate", classifier, "--out", tmp_path / "x.png"), ("evaluate", tmp_path / "dcgan")):
        refused = cifarscale(*command)
        assert refused.returncode == 1
        assert refused.stderr.count("\n") == 1
        assert "and this needs a" in refused.stderr


def test_the_losses_are_those_of_the_paper(task: GanLearner, recipe: GanRecipe) -> None:
    images = torch.randint(0, 256, (16, 3, 32, 32), dtype=torch.uint8)
    ids = torch.arange(16)
    prepared = task.prepare(Batch(images, ids, ids, range(16)), step=3)
    generator, discriminator = task.networks["generator"], task.networks["discriminator"]
    loss, (_, real, fake, _, _) = task.loss("discriminator", task.networks, prepared, 3)
    d_real, d_fake = real.sigmoid(), fake.sigmoid()
    assert loss.item() == pytest.approx(-(d_real.log().mean() + (1 - d_fake).log().mean()).item(), rel=1e-4)
    loss, _ = task.loss("generator", task.networks, prepared, 3)
    expected = -F.logsigmoid(discriminator(generator(prepared.latents))).mean()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-4)


def test_the_discriminators_loss_does_not_reach_the_generator(task: GanLearner) -> None:
    ids = torch.arange(16)
    prepared = task.prepare(Batch(torch.zeros(16, 3, 32, 32, dtype=torch.uint8), ids, ids, range(16)), step=0)
    loss, _ = task.loss("discriminator", task.networks, prepared, 0)
    loss.backward()
    assert all(parameter.grad is None for parameter in task.networks["generator"].parameters())


def test_real_images_are_scaled_to_the_generators_range_and_flipped_by_halves(
    recipe: GanRecipe, tmp_path: Path
) -> None:
    plain = with_values(recipe, augmentation__flip=False)
    assert isinstance(plain, GanRecipe)
    images = torch.zeros(400, 3, 32, 32, dtype=torch.uint8)
    images[..., 16:] = 255
    batch = Batch(images, torch.zeros(400), torch.zeros(400), range(400))
    for each, flipped in ((plain, 0), (recipe, 200)):
        left = build_task(each, tmp_path).prepare(batch, step=0).images[:, 0, 0, 0]
        assert set(left.tolist()) <= {-1.0, 1.0}
        assert abs(int((left == 1).sum()) - flipped) <= (40 if flipped else 0)

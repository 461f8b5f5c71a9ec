"""What steps take from the host: made ahead in tables, it is what it was when each step made its own."""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from runs import learner_context

from cifarscale.config.load import load_training_recipe
from cifarscale.data.in_memory import InMemoryReader, InMemorySplit
from cifarscale.data.manifest import Manifest
from cifarscale.data.shards import Samples
from cifarscale.distributed import step_values
from cifarscale.distributed.randomness import Draws
from cifarscale.distributed.step_values import DIRECT, StepTables
from cifarscale.tasks.classifier.learner import ClassifierLearner
from cifarscale.tasks.flow.learner import FlowLearner
from cifarscale.tasks.gan.learner import GanLearner
from cifarscale.training.learner import Learner

CPU = torch.device("cpu")
BLOCK, SIZE, NUM_SAMPLES = 3, 16, 50
LEARNERS: dict[str, Any] = {"classifier": ClassifierLearner, "gan": GanLearner, "flow": FlowLearner}


@pytest.fixture(autouse=True)
def _short_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step_values, "BLOCK_STEPS", BLOCK)


def loaded(tables: StepTables, first: int, number: int) -> Iterator[int]:
    """The steps, each with its row."""
    for step in range(first, first + number):
        tables.advance(step)
        tables.load()
        yield step


RECIPES = {
    "plain": "cnn",
    "crop, flip, cutout": "cnn augmentation.crop_padding=4 augmentation.flip=true augmentation.cutout=8",
    "alternating flip": "cnn augmentation.alternating_flip=true",
    "mixup": "cnn augmentation.mixup=0.4",
    "cutmix": "cnn augmentation.cutmix=1.0 augmentation.resolution=24",
    "mixup or cutmix": "cnn augmentation.mixup=0.4 augmentation.cutmix=1.0",
    "gan": "dcgan augmentation.flip=true augmentation.colour=true",
    "flow": "flow objective.class_dropout=0.5 model.conditional=true",
}


@pytest.mark.parametrize("options", RECIPES.values(), ids=RECIPES)
def test_what_is_prepared_from_tables_is_what_was_prepared_without(options: str, shards: Path, tmp_path: Path) -> None:
    """Over several blocks and an epoch's end, from any step on."""
    name, *changes = options.split()
    recipe = load_training_recipe(name, (f"training.global_batch_size={SIZE}", *changes))
    learner: Learner = LEARNERS[recipe.task](recipe, learner_context(Manifest.load(shards), tmp_path))
    images = np.random.default_rng(0).integers(0, 256, (NUM_SAMPLES, 32, 32, 3), np.uint8)
    numbers = np.arange(NUM_SAMPLES)
    reader = InMemoryReader(InMemorySplit(Samples(images, numbers % 10, numbers)), recipe.seed, SIZE)
    first, number = 5, 3 * BLOCK - 1
    tables = StepTables(CPU, first + number)
    for step in loaded(tables, first, number):
        tables.is_recorded = step > first
        found, expected = (learner.prepare(next(reader.batches(step, values)), step) for values in (tables, DIRECT))
        for key, value in vars(expected).items():
            like = torch.as_tensor(value, dtype=None if isinstance(value, torch.Tensor) else torch.float32)
            mine = torch.as_tensor(getattr(found, key), dtype=like.dtype)
            assert torch.equal(mine, like), f"{key} of step {step}"
            assert mine.stride() == like.stride(), key


def test_an_own_augmentation_draws_from_tables_what_it_drew_without_and_may_change_it() -> None:
    tables = StepTables(CPU, 100)
    for step in loaded(tables, 0, 2 * BLOCK):
        for positions in (range(0, SIZE, 2), range(1, SIZE, 2)):
            mine, theirs = (Draws(3, "own", step, positions, CPU, values) for values in (tables, DIRECT))
            for _ in range(2):
                assert torch.equal(mine.uniform("angle", 3, 1), theirs.uniform("angle", 3, 1))
                assert torch.equal(mine.normal("shift").mul_(0), theirs.normal("shift") * 0)
                assert torch.equal(mine.integers("n", 0, 9, 2), theirs.integers("n", 0, 9, 2))
            assert mine.shared("x").random() == theirs.shared("x").random()


def made(step: int) -> torch.Tensor:
    return torch.tensor([step, step + 1], dtype=torch.int32)


def test_what_the_first_step_did_not_ask_for_is_served_and_said(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("cifarscale"), "propagate", True)
    caplog.set_level(logging.DEBUG, "cifarscale")
    tables = StepTables(CPU, 100)
    for step in loaded(tables, 0, 4):
        tables.tensor(("known", None), step, made, CPU)
        if step > 1:
            assert tables.tensor(("new", None), step, made, CPU).tolist() == [step, step + 1]
    assert set(caplog.messages) == {"'new', which the first step did not ask for, is copied from the host in each step"}
    tables.is_recorded = True
    assert tables.tensor(("known", None), 3, made, CPU).tolist() == [3, 4]
    with pytest.raises(RuntimeError, match="'new' is copied from the host in each step"):
        tables.tensor(("new", None), 3, made, CPU)


def test_another_step_than_the_one_that_is_loaded_is_served() -> None:
    """As one that estimates statistics wants."""
    tables = StepTables(CPU, 100)
    for step in loaded(tables, 7, 4):
        for other in (step, step + 1, 50):
            assert tables.tensor(("a", None), other, made, CPU).tolist() == [other, other + 1]


@pytest.mark.parametrize("jump", [1, 2, 40, -3])
def test_steps_may_be_left_out(jump: int) -> None:
    tables = StepTables(CPU, 100)
    for first in (10, 11, 11 + jump):
        for step in loaded(tables, first, 1):
            assert tables.tensor(("a", None), step, made, CPU).tolist() == [step, step + 1]
            assert [float(each) for each in tables.numbers(("b", None), step, lambda s: (s, 0.1), CPU)] == [
                step,
                pytest.approx(0.1),
            ]


def test_a_block_is_as_long_as_memory_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step_values, "BLOCK_BYTES", 5000)
    tables, calls = StepTables(CPU, 100), []

    def large(step: int) -> torch.Tensor:
        calls.append(step)
        return torch.full((500,), float(step))

    for step in loaded(tables, 0, 3):
        assert tables.tensor(("large", None), step, large, CPU)[-1] == step
        assert tables._table.shape == (2, 256) if step else calls == [0]


def test_what_a_thread_raises_is_raised_in_the_block_that_it_is_for() -> None:
    tables = StepTables(CPU, 100)

    def broken(step: int) -> torch.Tensor:
        if step > 4:
            raise ValueError(f"step {step}")
        return made(step)

    steps = loaded(tables, 0, 10)
    for step in range(4):
        assert next(steps) == step
        tables.tensor(("a", None), step, broken, CPU)
    with pytest.raises(ValueError, match="step 5"):
        next(steps)

"""A step as a graph, emulated on the CPU: it changes no bit, and where it would, or cannot be, there is none."""

import logging
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from emulated_graph import EmulatedGraph
from runs import Run, assert_same, learner_context

from cifarscale.config.load import load_training_recipe
from cifarscale.config.recipe import TrainingRecipe, stages_of
from cifarscale.data.in_memory import InMemoryReader, InMemorySplit
from cifarscale.data.manifest import Manifest
from cifarscale.data.shards import Samples
from cifarscale.distributed import step_values
from cifarscale.errors import Interrupted
from cifarscale.runs.checkpoint import newest_checkpoint
from cifarscale.tasks.classifier.learner import ClassifierLearner
from cifarscale.tasks.flow.learner import FlowLearner
from cifarscale.tasks.gan.learner import GanLearner
from cifarscale.tracking.metrics import differs
from cifarscale.training.engine import Engine
from cifarscale.training.graph import WARM_UP_STEPS
from cifarscale.training.learner import Learner
from cifarscale.training.signals import StopRequest

BLOCK, STEPS, NUM_SAMPLES = 4, 18, 50
LEARNERS: dict[str, Any] = {"classifier": ClassifierLearner, "gan": GanLearner, "flow": FlowLearner}


@pytest.fixture(autouse=True)
def _short_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step_values, "BLOCK_STEPS", BLOCK)


@pytest.fixture
def manifest(shards: Path) -> Manifest:
    return Manifest.load(shards)


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """What was said of graphs."""
    monkeypatch.setattr(logging.getLogger("cifarscale"), "propagate", True)
    caplog.set_level(logging.INFO, "cifarscale")
    return caplog.messages  # type: ignore[return-value]


def small(name: str, *changes: str) -> TrainingRecipe:
    settings = ("global_batch_size=16", f"max_steps={STEPS}", "log_every=5", "checkpoint_every=7")
    given = ("evaluation.every=0", 'training.precision="fp32"', *(f"training.{each}" for each in settings))
    return load_training_recipe(name, (*given, *changes))


@dataclass
class Log:
    """An observer that keeps the lines of the log, without times."""

    lines: list[dict[str, float]] = field(default_factory=list)

    def trained(self, step: int, values: dict[str, float]) -> None:
        self.lines.append({"step": step} | {key: value for key, value in values.items() if not differs(key)})

    def __getattr__(self, name: str) -> Any:
        return lambda *_: None


class Training:
    """A run in a folder, with graphs or one operation at a time."""

    def __init__(self, recipe: TrainingRecipe, folder: Path, manifest: Manifest, learner: type | None = None) -> None:
        self.recipe, self.folder, self.manifest = recipe, folder, manifest
        self.learner = learner or LEARNERS[recipe.task]
        self.graphs: list[EmulatedGraph] = []
        self.log = Log()

    def run(self, with_graphs: bool, stop_after: int | None = None) -> "Training":
        """Goes on from the newest checkpoint."""
        context = learner_context(self.manifest, self.folder)
        learner: Learner = self.learner(self.recipe, context)
        images = np.random.default_rng(0).integers(0, 256, (NUM_SAMPLES, 32, 32, 3), np.uint8)
        numbers = np.arange(NUM_SAMPLES)
        split = InMemorySplit(Samples(images, numbers % 10, numbers))
        reader = InMemoryReader(split, self.recipe.seed, self.recipe.samples_per_step)
        (stage,) = stages_of(self.recipe)
        stop, checkpoints = StopRequest(), self.folder / "checkpoints"
        stop.after_step = stop_after
        ranks = context.group, context.pool, context.device
        engine = Engine(stage, "", learner, reader, *ranks, checkpoints, self.log, stop, self._graph)
        if not with_graphs:
            engine._graphs = None
        with suppress(Interrupted):
            engine.train(newest_checkpoint(checkpoints))
        return self

    def _graph(self) -> EmulatedGraph:
        self.graphs.append(EmulatedGraph())
        return self.graphs[-1]

    @property
    def num_replays(self) -> int:
        return sum(graph.num_replays for graph in self.graphs)

    def assert_same_as(self, other: "Training") -> None:
        """Weights, moments, averages, and what was logged, in every bit."""
        assert_same(
            Run(self.folder).state() | {"seconds": 0, "data_seconds": 0},
            Run(other.folder).state() | {"seconds": 0, "data_seconds": 0},
            "state",
        )
        assert self.log.lines == other.log.lines


RECIPES = {
    "cnn": "cnn",
    "cnn, one microbatch": "cnn training.microbatches=0",
    "augmented": "cnn augmentation.crop_padding=4 augmentation.padding=reflect augmentation.alternating_flip=true "
    "augmentation.cutout=8 augmentation.mixup=0.4 label_smoothing=0.1",
    "cutmix": "cnn augmentation.cutmix=1.0",
    "muon, clipped, averaged": "cnn optimizer.name=muon training.gradient_clip_norm=0.1 training.ema_decay=0.9 "
    "model.normalisation=batch training.ema_statistics=2",
    "resnet": "resnet model.width=4 training.microbatches=2 augmentation.resolution=24",
    "bf16": "cnn training.precision=bf16",
    "dcgan": "dcgan model.generator_width=8 model.discriminator_width=8",
    "dcgan-plus": "dcgan-plus model.generator_width=8 model.discriminator_width=8 model.spectral=true "
    "discriminator_updates=2",
    "flow": "flow schedule.warmup_steps=2 model.widths=[8] model.blocks=[1] training.microbatches=2 sampler.steps=2",
}


@pytest.mark.parametrize("options", RECIPES.values(), ids=RECIPES)
def test_a_graph_changes_no_bit(options: str, manifest: Manifest, tmp_path: Path, said: list[str]) -> None:
    """Over several blocks of the tables, lines of the log and checkpoints."""
    recipe = small(*options.split())
    by_itself = Training(recipe, tmp_path / "a", manifest).run(False)
    graph = Training(recipe, tmp_path / "b", manifest).run(True)
    assert graph.num_replays == STEPS - WARM_UP_STEPS - 1, said
    graph.assert_same_as(by_itself)

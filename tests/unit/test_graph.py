"""A step as a graph, emulated on the CPU: it changes no bit, and where it would, or cannot be, there is none."""

import logging
import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from emulated_graph import EmulatedGraph
from runs import Run, assert_same, learner_context
from torch import nn
from torch.nn import functional
from torch.utils._python_dispatch import _get_current_dispatch_mode

from cifarscale.config.load import load_training_recipe
from cifarscale.config.recipe import Stage, TrainingRecipe, stages_of
from cifarscale.data.batches import Batch
from cifarscale.data.in_memory import InMemoryReader, InMemorySplit
from cifarscale.data.manifest import Manifest
from cifarscale.data.shards import Samples
from cifarscale.distributed import step_values
from cifarscale.errors import Interrupted, NonFiniteLossError
from cifarscale.runs.checkpoint import newest_checkpoint
from cifarscale.runs.checkpoint_files import checkpoint_step
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
def said(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[str]]:
    """What was said of graphs."""
    monkeypatch.setattr(logging.getLogger("cifarscale"), "propagate", True)
    caplog.set_level(logging.INFO, "cifarscale")
    return lambda: list(dict.fromkeys(line for line in caplog.messages if "graph" in line))


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

    kind_of_graph: type[EmulatedGraph] = EmulatedGraph

    def __init__(self, recipe: TrainingRecipe, folder: Path, manifest: Manifest, learner: type | None = None) -> None:
        self.recipe, self.folder, self.manifest = recipe, folder, manifest
        self.learner = learner or LEARNERS[recipe.task]
        self.graphs: list[EmulatedGraph] = []
        self.log = Log()

    def run(self, with_graphs: bool, stop_after: int | None = None) -> "Training":
        """Goes on from the newest checkpoint."""
        with suppress(Interrupted):
            for stage in stages_of(self.recipe):
                newest = newest_checkpoint(self.folder / "checkpoints")
                if newest is None or checkpoint_step(newest) < stage.until:
                    self._engine(stage, with_graphs, stop_after).train(newest)
        return self

    def _engine(self, stage: Stage, with_graphs: bool, stop_after: int | None) -> Engine:
        context = learner_context(self.manifest, self.folder)
        learner: Learner = self.learner(stage.recipe, context)
        images = np.random.default_rng(0).integers(0, 256, (NUM_SAMPLES, 32, 32, 3), np.uint8)
        numbers = np.arange(NUM_SAMPLES)
        split = InMemorySplit(Samples(images, numbers % 10, numbers))
        reader = InMemoryReader(split, self.recipe.seed, self.recipe.samples_per_step)
        stop = StopRequest()
        stop.after_step = stop_after
        engine = Engine(stage, "", learner, reader, context, self.log, stop, self._graph)
        if not with_graphs:
            engine._graphs = None
        return engine

    def _graph(self) -> EmulatedGraph:
        self.graphs.append(self.kind_of_graph())
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
    "flow": "flow schedule.warmup_steps=2 model.widths=[8,8,8] training.microbatches=2 training.global_batch_size=8",
}


@pytest.mark.parametrize("options", RECIPES.values(), ids=RECIPES)
def test_a_graph_changes_no_bit(
    options: str, manifest: Manifest, tmp_path: Path, said: Callable[[], list[str]]
) -> None:
    """Over several blocks of the tables, lines of the log and checkpoints."""
    recipe = small(*options.split())
    by_itself = Training(recipe, tmp_path / "a", manifest).run(False)
    graph = Training(recipe, tmp_path / "b", manifest).run(True)
    assert graph.num_replays == STEPS - WARM_UP_STEPS - 1, said()
    graph.assert_same_as(by_itself)


KINDS = {
    "mixup or cutmix": "cnn augmentation.mixup=0.4 augmentation.cutmix=1.0",
    "penalties": "dcgan model.generator_width=8 model.discriminator_width=8 objective.r1=1 objective.penalty_every=3 "
    "model.discriminator_normalisation=none",
}


@pytest.mark.parametrize("options", KINDS.values(), ids=KINDS)
def test_steps_of_two_kinds_have_a_graph_each(options: str, manifest: Manifest, tmp_path: Path) -> None:
    recipe = small(*options.split(), "training.max_steps=24")
    by_itself = Training(recipe, tmp_path / "a", manifest).run(False)
    graph = Training(recipe, tmp_path / "b", manifest).run(True)
    assert len(graph.graphs) == 2
    assert graph.num_replays == 24 - 2 * (WARM_UP_STEPS + 1)
    graph.assert_same_as(by_itself)


@pytest.mark.parametrize("options", [RECIPES["muon, clipped, averaged"], RECIPES["dcgan-plus"]])
@pytest.mark.parametrize("after", [(2,), (4, 9), (11,)], ids=str)
def test_a_run_goes_on_within_a_block(options: str, after: tuple[int, ...], manifest: Manifest, tmp_path: Path) -> None:
    """Before there is a graph, before it is checked, and later; with a graph or without."""
    recipe = small(*options.split())
    whole = Training(recipe, tmp_path / "whole", manifest).run(True)
    resumed = Training(recipe, tmp_path / "resumed", manifest)
    for i, step in enumerate((*after, None)):
        resumed.run(i % 2 == 0, step)
    resumed.assert_same_as(whole)


def test_keys_that_change_on_the_way_have_graphs_of_their_own(manifest: Manifest, tmp_path: Path) -> None:
    later = "later=[{step=9, set={training.learning_rate=0.01, augmentation.mixup=0.4, training.ema_decay=0.9}}]"
    recipe = small("cnn", later)
    by_itself = Training(recipe, tmp_path / "a", manifest).run(False)
    graph = Training(recipe, tmp_path / "b", manifest).run(True)
    assert len(graph.graphs) == 2
    assert graph.num_replays == STEPS - 2 * (WARM_UP_STEPS + 1)
    graph.assert_same_as(by_itself)


def test_a_loss_that_is_not_finite_is_found_before_anything_is_saved(manifest: Manifest, tmp_path: Path) -> None:
    recipe = small("cnn", "training.log_every=100")
    for with_graphs in (True, False):
        training = Training(recipe, tmp_path / str(with_graphs), manifest, DivergesLate)
        with pytest.raises(NonFiniteLossError, match=r"the loss of step 10 is not finite; .* is .*step-00000007\."):
            training.run(with_graphs)


class DivergesLate(ClassifierLearner):
    """By what it draws for step 9."""

    def prepare(self, batch: Batch, step: int) -> Any:
        prepared = super().prepare(batch, step)
        infinite = batch.values.tensor(("late", None), step, lambda step: torch.tensor(step == 9), batch.images.device)
        return replace(prepared, images=prepared.images.masked_fill(infinite, torch.inf))


class Drops(ClassifierLearner):
    """A network with dropout, as if it were one of ours."""

    def loss(self, update: str, networks: Any, part: Any, step: int) -> Any:
        return super().loss(update, networks, replace(part, images=functional.dropout(part.images, 0.5)), step)


class CountsSteps(ClassifierLearner):
    """Says that its steps are alike, and computes with a number that it has from Python."""

    def loss(self, update: str, networks: Any, part: Any, step: int) -> Any:
        loss, outputs = super().loss(update, networks, part, step)
        return loss / (1 + step), outputs


class DrawsOnTheSide(ClassifierLearner):
    """Takes numbers from the host that no table knows, from a step on."""

    def prepare(self, batch: Batch, step: int) -> Any:
        prepared = super().prepare(batch, step)
        if step:
            batch.uniforms(0, "side", step, 1)
        return prepared


class Reads(ClassifierLearner):
    """Decides by what the device computes, which the CPU waits for."""

    def loss(self, update: str, networks: Any, part: Any, step: int) -> Any:
        loss, outputs = super().loss(update, networks, part, step)
        return loss * (2 if loss > 4.6 else 1), outputs


class Fails(ClassifierLearner):
    """Fails while it is recorded, when it has changed half of the weights."""

    def loss(self, update: str, networks: Any, part: Any, step: int) -> Any:
        with torch.no_grad():
            networks[update].classifier.bias.mul_(1.01)
        if _get_current_dispatch_mode() is not None:
            raise MemoryError("no memory is left")
        return super().loss(update, networks, part, step)


class BreaksOff(EmulatedGraph):
    """Has no memory left in the middle of a replay."""

    def replay(self) -> None:
        self._operations = self._operations[: len(self._operations) * 9 // 10]
        super().replay()
        raise torch.OutOfMemoryError("no memory is left")


def test_after_a_replay_that_fails_the_step_is_done_from_where_it_began(
    manifest: Manifest, tmp_path: Path, said: Callable[[], list[str]]
) -> None:
    recipe = small("resnet", "model.width=4", "training.ema_decay=0.9")
    graph = Training(recipe, tmp_path / "b", manifest)
    graph.kind_of_graph = BreaksOff
    graph.run(True)
    assert said() == ["steps are not replayed as a graph: no memory is left"]
    graph.assert_same_as(Training(recipe, tmp_path / "a", manifest).run(False))


class WithOwnNetwork(ClassifierLearner):
    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.networks = {"classifier": nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 100))}


REFUSED: dict[str, tuple[type[Learner], str, str]] = {
    "dropout": (Drops, "", "the classifier draws random numbers of its own"),
    "Python's state": (CountsSteps, "", "the first replay has made something else of classifier.*than the step by"),
    "without microbatches": (CountsSteps, "training.microbatches=0", "without microbatches may differ from itself"),
    "values of its own": (DrawsOnTheSide, "", "'side' is copied from the host in each step"),
    "control flow": (Reads, "", "operation not permitted when stream is capturing: aten._local_scalar_dense"),
    "an error": (Fails, "", "no memory is left"),
    "own network": (WithOwnNetwork, "", "network Sequential is code of your own"),
    "compile": (ClassifierLearner, "training.compile=true training.microbatches=0", "training.compile has one"),
    "fp16": (ClassifierLearner, "training.precision=fp16", "decides on the CPU whether a step counts"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_where_there_is_no_graph_it_is_said_why_and_training_is_what_it_was(
    name: str, manifest: Manifest, tmp_path: Path, said: Callable[[], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    learner, options, reason = REFUSED[name]
    monkeypatch.setattr(Engine, "_compile", lambda _: None)
    recipe = small("cnn", "training.max_steps=7", "training.ema_decay=0.9", *options.split())
    graph = Training(recipe, tmp_path / "b", manifest, learner).run(True)
    (line,) = said()
    assert re.search(f"^steps are not replayed as a graph: .*{reason}", line)
    by_itself = Training(recipe, tmp_path / "a", manifest, learner).run(False)
    assert graph.num_replays <= 1
    graph.assert_same_as(by_itself)

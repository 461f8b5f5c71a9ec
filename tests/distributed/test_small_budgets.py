"""Runs of the options for small budgets: each a function of its recipe, on any number of ranks and after any stop."""

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import Run, learner_context, run_recipe
from torch.nn import functional

from cifarscale.config.load import computed, load_training_recipe, recipe_hash
from cifarscale.config.recipe import TrainingRecipe, resolved, stages_of
from cifarscale.data.batches import Batch
from cifarscale.data.dataset import Dataset
from cifarscale.errors import ConfigError, Interrupted, RunError
from cifarscale.launch.run import prepare
from cifarscale.runs.options import RunOptions
from cifarscale.runs.run_folder import RunFolder
from cifarscale.tasks.base import task_of
from cifarscale.tasks.classifier.learner import ClassifierLearner, distillation_loss
from cifarscale.tasks.classifier.teacher import digest_of_weights
from cifarscale.tasks.load import load_classifier
from cifarscale.tasks.training import resolve
from cifarscale.training.signals import StopRequest

pytestmark = pytest.mark.distributed
CPU = torch.device("cpu")

RECIPE = """
task = "classifier"
test_time_flip = true

[model]
name = "residual_stages"
widths = [4, 8]
blocks = [1, 1]
{model}

[augmentation]
crop_padding = 4
padding = "reflect"
alternating_flip = true

[optimizer]
{optimizer}

[training]
max_steps = 8
global_batch_size = 16
ema_decay = 0.9
ema_statistics = 2
rates = [["classifier.*", 2.0], ["*.norms.*", 0.5]]
log_every = 1
checkpoint_every = 3

[evaluation]
every = 4
batch_size = 60

[[later]]
step = 5
set = {{ "augmentation.resolution" = 24, "augmentation.crop_padding" = 2 }}
"""
MODELS = {
    "gated": ('block = "gated_depthwise"\nattention = "efficient_channel"\nrepeat = 2', 'name = "muon"'),
    "bottleneck": ('attention = "squeeze_excitation"\ndownsampling = "depthwise"', 'name = "sgd"'),
}
"""By their names sections `model`, but for what all have, and `optimizer`."""


@dataclass(frozen=True)
class Case:
    """A recipe, tied to its data, and its run by one rank that nothing stopped."""

    recipe: TrainingRecipe
    run: Run


def learner_of(recipe: Any, shards: Path, step: int = 0) -> tuple[ClassifierLearner, Iterator[Batch]]:
    """What one rank trains by a recipe, with the weights that it begins with, and its batches from a step on."""
    data = Dataset(shards, recipe.data, CPU)
    context = replace(learner_context(data.manifest, Path("unused")), data=data)
    return ClassifierLearner(recipe, context), iter(data.reader(recipe, context.group).batches(step))


@pytest.fixture(scope="module")
def teacher(train_here: Callable[..., Run], tmp_path_factory: pytest.TempPathFactory) -> Run:
    return train_here(tmp_path_factory.mktemp("teacher") / "run", "training.max_steps=2", "model.name=resnet")


@pytest.fixture(scope="module", params=MODELS)
def case(request: pytest.FixtureRequest, teacher: Run, shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Case:
    folder = tmp_path_factory.mktemp(request.param)
    file = folder / "recipe.toml"
    model, optimizer = MODELS[request.param]
    file.write_text(RECIPE.format(model=model, optimizer=optimizer), encoding="utf-8")
    distilled = (f"distillation.teacher={teacher.path}",) if request.param == "bottleneck" else ()
    recipe = resolve(load_training_recipe(str(file), distilled), shards)
    run_recipe(recipe, folder / "run", RunOptions(shards, "cpu"))
    return Case(recipe, Run(folder / "run"))


@pytest.mark.parametrize("step", [2, 5])
def test_interrupted_anywhere_it_ends_the_same(step: int, case: Case, shards: Path, tmp_path: Path) -> None:
    stop = StopRequest()
    stop.after_step = step
    with pytest.raises(Interrupted):
        run_recipe(case.recipe, tmp_path / "run", RunOptions(shards, "cpu"), None, stop)
    run_recipe(case.recipe, tmp_path / "run", RunOptions(shards, "cpu"))
    Run(tmp_path / "run").assert_same_as(case.run)


def test_two_ranks_do_the_same(case: Case, cifarscale: Callable[..., Any], shards: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    ended = cifarscale("train", case.run.path / "recipe.toml", "--data", shards, "--run-dir", folder, "--nproc", 2)
    assert ended.returncode == 0, ended.stderr
    assert "multiply-accumulates an image" in ended.stdout
    Run(folder).assert_same_as(case.run)


def test_the_result_says_what_it_cost(case: Case, teacher: Run) -> None:
    result = case.run.result()
    assert result["images"] == 8 * 16
    assert result["training_flops"] > 0
    macs = result["macs"]
    taught = teacher.result()["macs"] if case.recipe.distillation.teacher else 0  # type: ignore[attr-defined]
    at_full_size = 2 * 16 * 8 * (3 * macs + taught)
    smaller = 2 * 16 * (5 + 3 * (24 / 32) ** 2) * (3 * macs + taught)
    assert result["training_flops"] < at_full_size
    assert result["training_flops"] == pytest.approx(smaller, rel=0.02)  # but for what does not depend on the size
    assert {f"{split}_flip" for split in ("train", "test")} <= result.keys()
    assert result["test_flip"] != result["test"]
    shown = task_of(case.recipe).view.measured(RunFolder(case.run.path), case.recipe, result, [])
    assert [fact.name for fact in shown] == ["test top-1", "test, flip top-1", "train top-1"]


def test_averaged_weights_have_the_statistics_of_the_next_batches(case: Case, shards: Path) -> None:
    """Means over the augmented images of two steps beyond the last one, each step in four microbatches."""
    state = case.run.state()
    average, trained = state["averages"]["classifier"], state["networks"]["classifier"]
    learner, batches = learner_of(stages_of(case.recipe)[-1].recipe, shards, 8)
    means = []
    for step, batch in zip(range(8, 10), batches, strict=False):
        prepared = learner.prepare(batch, step)
        for i in range(4):
            maps = functional.conv2d(prepared.part(i, 4).images, average["stages.0.0.convolution.weight"], padding=1)
            means.append(maps.mean((0, 2, 3)))
    expected = torch.stack(means).mean(0)
    torch.testing.assert_close(average["stages.0.0.norms.0.running_mean"], expected, rtol=1e-4, atol=1e-5)
    for name in average:
        if name.endswith("running_mean"):
            assert not torch.equal(average[name], trained[name]), name
    loaded = load_classifier(case.run.path, CPU).network.state_dict()
    assert all(torch.equal(value, average[key]) for key, value in loaded.items())


def test_evaluation_with_flips_finds_what_the_run_has_found(
    case: Case, cifarscale: Callable[..., Any], shards: Path
) -> None:
    ended = cifarscale("evaluate", case.run.path, "--data", shards, "--flip")
    assert ended.returncode == 0, ended.stderr
    assert "by the mean logits of each image and its mirror image: top-1" in ended.stdout
    found = json.loads((case.run.path / "evaluation-test.json").read_text(encoding="utf-8"))
    assert found["flip"] == case.run.result()["test_flip"]


def test_a_groups_learning_rate_is_a_multiple_of_the_others(
    train_here: Callable[..., Run], tmp_path: Path, shards: Path, tiny: Path
) -> None:
    settings = ("training.max_steps=1", "optimizer.name=sgd", "optimizer.nesterov=false", "optimizer.momentum=0")
    with_rates = train_here(tmp_path / "rates", *settings, "training.rates=[['classifier.*', 2.0], ['*', 0.5]]")
    without = train_here(tmp_path / "one", *settings)
    learner, _ = learner_of(resolve(load_training_recipe(str(tiny)), shards), shards)
    network = learner.networks["classifier"]
    ours, plain = (run.state()["networks"]["classifier"] for run in (with_rates, without))
    for name, was in network.state_dict().items():
        factor = 2.0 if name.startswith("classifier.") else 0.5
        torch.testing.assert_close(ours[name] - was, factor * (plain[name] - was), rtol=1e-3, atol=1e-6)
    assert not torch.equal(plain["classifier.weight"], network.state_dict()["classifier.weight"])


def test_statistics_of_one_value_are_refused_in_one_line(train_here: Callable[..., Run], tmp_path: Path) -> None:
    model = "model={name='residual_stages', widths=[4, 4, 4, 4, 4], blocks=[1, 1, 1, 1, 1]}"
    more = ("augmentation.resolution=16", "training.global_batch_size=4", "training.microbatches=4")
    with pytest.raises(RunError, match="batch normalisation has one value a channel in a microbatch") as caught:
        train_here(tmp_path / "run", model, *more)
    assert "\n" not in str(caught.value)


# Distillation


def test_the_divergence_is_the_cross_entropy_less_the_teachers_entropy() -> None:
    generator = torch.Generator().manual_seed(0)
    logits, taught = (torch.randn(5, 7, generator=generator, dtype=torch.float32) for _ in range(2))
    p, q = ((each / 3).softmax(1).double() for each in (taught, logits))
    expected = 9 * (p * (p.log() - q.log())).sum(1).mean()
    torch.testing.assert_close(distillation_loss(logits, taught, 3.0).double(), expected)
    assert float(distillation_loss(taught, taught, 3.0)) == pytest.approx(0, abs=1e-6)


def test_a_teacher_is_part_of_the_recipe_by_its_weights(teacher: Run, tiny: Path, shards: Path) -> None:
    recipe = resolve(load_training_recipe(str(tiny), (f"distillation.teacher={teacher.path}",)), shards)
    weights = digest_of_weights(load_classifier(teacher.path, CPU).network)
    assert recipe.distillation.weights == weights  # type: ignore[attr-defined]
    assert recipe_hash(recipe) != recipe_hash(resolve(load_training_recipe(str(tiny)), shards))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (("distillation.teacher=nowhere",), "distillation.teacher = 'nowhere': there is no complete run"),
        (("data.num_validation=10",), "has trained on images that this recipe sets aside for validation"),
        (("distillation.weights=0123",), "than those that this recipe names (distillation.weights = '0123')"),
        (("augmentation.resolution=24",), "augmentation.resolution = 24: not every network here takes images"),
        (
            ("augmentation.resolution=24", "augmentation.cutout=25"),
            "is too much for augmentation.resolution = 24: at most",
        ),
        (
            ("later=[{step=2, set={'augmentation.crop_padding'=17}}]",),
            "crop_padding = 17 is too much for images of",
        ),
        (
            ("training.rates=[['head.*', 2.0]]",),
            "training.rates: 'head.*' is no parameter's first match; parameters are",
        ),
        (("budget.max_parameters=1000",), "parameters, and budget.max_parameters = 1000 allows no more"),
    ],
)
def test_what_does_not_fit_is_refused_before_it_begins(
    changes: tuple[str, ...], said: str, teacher: Run, tiny: Path, shards: Path, tmp_path: Path
) -> None:
    recipe = load_training_recipe(str(tiny), (f"distillation.teacher={teacher.path}", *changes))
    with pytest.raises(ConfigError) as caught:
        prepare(recipe, tmp_path / "run", str(shards))
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_the_teacher_has_its_share_of_the_loss(teacher: Run, tiny: Path, shards: Path) -> None:
    changes = ("distillation.temperature=3", "distillation.weight=0.25", "training.microbatches=1")
    recipe: Any = resolve(load_training_recipe(str(tiny), (f"distillation.teacher={teacher.path}", *changes)), shards)
    learner, batches = learner_of(recipe, shards)
    part = learner.prepare(next(batches), 0)
    loss, (logits,) = learner.loss("classifier", learner.networks, part, 0)
    with torch.no_grad():
        taught = load_classifier(teacher.path, CPU).network(part.images)
    p, log_q = (taught / 3).softmax(1).double(), (logits / 3).double().log_softmax(1)
    divergence = (p * (p.log() - log_q)).sum(1).mean()
    expected = 0.75 * functional.cross_entropy(logits.double(), part.labels) + 0.25 * 9 * divergence
    torch.testing.assert_close(loss.double(), expected)


class _Leaves:
    """Takes a folder away after a step."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def started(self, step: int) -> None: ...

    def log(self, step: int, values: dict[str, float]) -> None:
        if self._folder.exists():
            self._folder.rename(self._folder.with_name("moved"))

    def finish(self, result: dict[str, Any] | None, error: BaseException | None) -> None: ...


def test_a_teacher_that_goes_away_in_the_middle_loses_nothing(
    teacher: Run, tiny: Path, shards: Path, tmp_path: Path
) -> None:
    copy = shutil.copytree(teacher.path, tmp_path / "teacher")
    recipe = resolve(load_training_recipe(str(tiny), (f"distillation.teacher={copy}",)), shards)
    result = run_recipe(recipe, tmp_path / "run", RunOptions(shards, "cpu"), _Leaves(copy))
    assert not copy.exists()
    assert result["training_flops"] > 3 * 2 * result["macs"] * result["images"]
    prepared = prepare(load_training_recipe(str(tmp_path / "run" / "recipe.toml")), tmp_path / "run", str(shards))
    assert prepared.result() == result
    (tmp_path / "run" / "result.json").unlink()
    with pytest.raises(ConfigError, match=r"may lie elsewhere by now: --set distillation\.teacher=RUN"):
        prepare(recipe, tmp_path / "run", str(shards))
    moved = load_training_recipe(str(tmp_path / "run" / "recipe.toml"), (f"distillation.teacher={tmp_path / 'moved'}",))
    prepare(moved, tmp_path / "run", str(shards))


def test_the_distilled_recipe_is_the_best_one_and_a_teacher_that_it_says_how_to_train(
    tmp_path: Path, shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    distilled, best = (resolved(load_training_recipe(name)) for name in ("cnn-distilled", "cnn-best"))
    assert computed(distilled | {"distillation": best["distillation"]}) == computed(best)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError) as caught:
        prepare(load_training_recipe("cnn-distilled"), None, str(shards))
    assert "Run: cifarscale train resnet --data synthetic --run-dir runs/resnet; or name another run" in str(
        caught.value
    )


def test_steps_beyond_the_budget_are_refused(tiny: Path) -> None:
    with pytest.raises(ConfigError, match=r"training\.max_steps = 20 is more than budget\.max_steps = 10"):
        load_training_recipe(str(tiny), ("budget.max_steps=10",))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (("training.rates=[['head.*', 2.0]]",), "training.rates: 'head.*' is no parameter's first match"),
        (("training.rates=['head.*']",), "training.rates.0 = 'head.*': input should be a valid tuple; write a pair: "),
        (("distillation.weight=0.9",), "distillation.weight = 0.9 has no effect without distillation.teacher"),
        (("distillation.weights=0123",), "distillation.weights = '0123' has no effect without distillation.teacher"),
        (
            ("training.ema_decay=0.9", "later=[{step=2, set={'training.ema_statistics'=2}}]"),
            "later: at step 2: training.ema_statistics = 2 is for batch normalisation, and the network has none",
        ),
        (("training.ema_decay=0.9", "training.ema_statistics=2"), "the network has none: set it to 0"),
        (("training.ema_statistics=2",), "training.ema_statistics = 2 needs training.ema_decay above 0"),
    ],
)
def test_what_has_no_effect_is_refused(
    changes: tuple[str, ...], said: str, train_here: Callable[..., Run], tmp_path: Path
) -> None:
    with pytest.raises(ConfigError) as caught:
        train_here(tmp_path / "run", *changes)
    assert said in str(caught.value)

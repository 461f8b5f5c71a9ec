"""The folder of a sweep: its table, its order, and what it refuses."""

import json
from pathlib import Path

import pytest

from cifarscale.config.load import load_recipe
from cifarscale.config.recipe import TrainingRecipe
from cifarscale.data.manifest import Manifest
from cifarscale.errors import RunError
from cifarscale.sweeps.recipe import SweepRecipe
from cifarscale.sweeps.space import base_of
from cifarscale.sweeps.trials import (
    COMPLETE,
    FAILED,
    REPEATED,
    STOPPED,
    SweepFolder,
    Trial,
    add_trial,
    ranked,
    shown_overrides,
    value_of,
)
from cifarscale.tasks.training import resolve


@pytest.fixture
def sweep() -> SweepRecipe:
    job = load_recipe("sweep-cnn", ["set.data.num_validation=100"])
    assert isinstance(job, SweepRecipe)
    return job


@pytest.fixture
def base(sweep: SweepRecipe, shards: Path) -> TrainingRecipe:
    return resolve(base_of(sweep), shards)


@pytest.fixture
def folder(sweep: SweepRecipe, base: TrainingRecipe, tmp_path: Path) -> SweepFolder:
    folder = SweepFolder(tmp_path / "swept")
    folder.prepare(sweep, base)
    return folder


def trial(number: int, state: str, step: int, value: float | None) -> Trial:
    return Trial(number, {}, f"t-{number}", state, step, value)


def test_complete_trials_come_first_and_then_those_that_came_furthest() -> None:
    trials = [
        trial(0, STOPPED, 10, 0.9),
        trial(1, COMPLETE, 40, 0.5),
        trial(2, FAILED, 0, None),
        trial(3, COMPLETE, 40, 0.6),
        trial(4, STOPPED, 20, 0.1),
    ]
    assert [each.number for each in ranked(trials, "max")] == [3, 1, 4, 0]
    assert [each.number for each in ranked(trials, "min")] == [1, 3, 4, 0]


@pytest.mark.parametrize(
    ("metric", "figures"),
    [
        ("validation_top1", {"validation": {"top1": 0.5}, "test": {"top1": 0.4}}),
        ("validation.top1", {"validation": {"top1": 0.5}}),
        ("frechet_distance", {"distance": {"distance": 0.5}}),
        ("distance.distance", {"distance": {"distance": 0.5}}),
    ],
)
def test_a_metric_is_found_in_a_result(metric: str, figures: dict[str, object]) -> None:
    assert value_of(figures, metric) == 0.5
    assert value_of({}, metric) is None


def test_changed_keys_are_shown_short_where_that_is_clear() -> None:
    overrides = {"schedule.name": "cosine", "model.width": 16, "augmentation.flip": True, "a.x": 1e-4, "b.x": 2}
    assert shown_overrides(overrides) == "schedule=cosine, width=16, flip=true, a.x=0.0001, b.x=2"


def test_a_recipe_that_was_tried_is_not_tried_again(
    sweep: SweepRecipe, base: TrainingRecipe, folder: SweepFolder, shards: Path
) -> None:
    manifest = Manifest.load(shards)
    states = [add_trial(point, sweep, base, folder, manifest).state for point in ({"seed": 1}, {"seed": 1}, {"sed": 1})]
    assert states == ["waiting", REPEATED, FAILED]
    assert folder.trials[1].reason == "the same recipe as trial 0"
    assert "did you mean 'seed'" in folder.trials[2].reason


def test_what_a_trial_wrote_after_the_table_counts(
    sweep: SweepRecipe, base: TrainingRecipe, folder: SweepFolder, shards: Path
) -> None:
    first = add_trial({"seed": 1}, sweep, base, folder, Manifest.load(shards))
    second = add_trial({"seed": 2}, sweep, base, folder, Manifest.load(shards))
    first.state = second.state = "running"
    folder.save(1.5)
    result = {"steps": 10_000, "validation": {"top1": 0.5}}
    (folder.run(first).path / "result.json").write_text(json.dumps(result))
    again = SweepFolder(folder.path)
    again.load()
    assert again.seconds == 1.5
    assert [each.state for each in again.trials] == [COMPLETE, "interrupted"]
    assert (again.trials[0].step, again.trials[0].value) == (10_000, 0.5)


def test_a_folder_of_another_sweep_is_refused(sweep: SweepRecipe, base: TrainingRecipe, folder: SweepFolder) -> None:
    folder.prepare(sweep, base)
    with pytest.raises(RunError, match="another recipe"):
        folder.prepare(sweep.model_copy(update={"seed": 1}), base)
    with pytest.raises(RunError, match="has changed since"):
        folder.prepare(sweep, base.model_copy(update={"seed": 1}))


def test_a_folder_that_is_no_sweep_is_refused(sweep: SweepRecipe, base: TrainingRecipe, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    with pytest.raises(RunError, match="is not a sweep's folder"):
        SweepFolder(tmp_path).prepare(sweep, base)
    with pytest.raises(RunError, match="is not a sweep's folder"):
        SweepFolder(tmp_path).load_sweep()

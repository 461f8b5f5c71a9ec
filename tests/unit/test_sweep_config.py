"""Recipes of sweeps: what is refused before anything starts, and what the trials try."""

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from cifarscale.config.load import load_recipe, load_training_recipe, recipe_toml, with_values
from cifarscale.config.recipe import TrainingRecipe
from cifarscale.config.registry import registered_task
from cifarscale.data.manifest import Manifest, published_manifest
from cifarscale.errors import ConfigError
from cifarscale.sweeps.prepared import check_trials
from cifarscale.sweeps.recipe import Distribution, SweepRecipe
from cifarscale.sweeps.space import (
    base_of,
    best_recipe,
    check_sweep,
    grid,
    sample,
    samples,
    sweep_hash,
    trial_recipe,
    values_of,
)

SWEEPS = ("sweep-cnn", "sweep-cnn-best", "sweep-dcgan", "sweep-flow", "sweep-gan-best")
NUM_TRIALS = 64


def load(*overrides: str, name: str = "sweep-cnn") -> SweepRecipe:
    job = load_recipe(name, overrides)
    assert isinstance(job, SweepRecipe)
    return job


def space(**keys: Mapping[str, Any]) -> dict[str, Distribution]:
    """Keys with two underscores for a dot."""
    return {key.replace("__", "."): Distribution(**values) for key, values in keys.items()}


@pytest.fixture
def base() -> TrainingRecipe:
    return load_training_recipe("cnn")


@pytest.mark.parametrize("name", SWEEPS)
def test_the_bundled_sweeps_are_whole_and_load_again_as_they_are(name: str, tmp_path: Path) -> None:
    sweep = load(name=name)
    check_sweep(sweep)
    path = tmp_path / "again.toml"
    path.write_text(recipe_toml(sweep))
    assert load_recipe(str(path)) == sweep


@pytest.mark.parametrize("name", ["sweep-cnn-best", "sweep-gan-best"])
def test_sweeps_within_a_budget_stay_within_it(name: str) -> None:
    sweep, manifest = load(name=name), published_manifest("cifar100")
    base = base_of(sweep)
    assert base.budget.max_parameters
    assert manifest is not None
    for trial in range(4):
        recipe = trial_recipe(sweep, base, sample(sweep.space, sweep.seed, trial, base))
        registered_task(recipe.task).check_cost(recipe, manifest)


def test_a_budget_is_that_of_trials_and_not_of_their_base(shards: Path) -> None:
    manifest = Manifest.load(shards)
    fits, exceeds = "space.model.width={choice=[2, 4]}", "space.model.width={choice=[4, 16]}"

    def check(budget: int, space: str) -> None:
        sweep = load(f"set.budget.max_parameters={budget}", space)
        check_trials(sweep, with_values(base_of(sweep), data__num_validation=100), manifest)

    check(30_000, fits)  # the base has 57,332
    with pytest.raises(ConfigError, match=r"parameters, and budget\.max_parameters = 60000 allows no more"):
        check(60_000, exceeds)


def test_the_cnn_is_swept_with_the_parameters_it_has() -> None:
    sweep = load()
    base = base_of(sweep)
    for trial in range(NUM_TRIALS):
        model = trial_recipe(sweep, base, sample(sweep.space, sweep.seed, trial, base)).model
        assert with_values(base, model__activation=model.activation).model == model


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("schedulr=1", "did you mean 'scheduler'"),
        ("schedulr.name=asha", "no section 'schedulr', only scheduler, searcher, set and space"),
        ("training.max_steps=9", "for this key of its base: set.training.max_steps"),
        ("model.width=9", "for this key of its base: set.model.width"),
        ("space.training.learning_rat={choice=[1]}", "did you mean 'training.learning_rate'"),
        ("set.training.max_step=1", "did you mean 'training.max_steps'"),
        ("space.training.learning_rate={lognormal=[0,1]}", "did you mean 'loguniform'"),
        ("space.training.learning_rate=3", "is not a distribution"),
        ("space.training.learning_rate={}", "exactly one is needed"),
        ("space.training.learning_rate={choice=[1],uniform=[1,2]}", "choice and uniform is given"),
        ("space.training.learning_rate={uniform=[1,1]}", "must be below high"),
        ("space.training.learning_rate={uniform=[1]}", "not of the form [low, high]"),
        ("space.training.learning_rate={loguniform=[0,1]}", "for its logarithm"),
        ("space.training.learning_rate={quniform=[1,2,0]}", "step = 0"),
        ("space.training.learning_rate={quniform=[1,2,5]}", "have a multiple between"),
        ("space.training.global_batch_size={randint=[1.5,3]}", "valid integer"),
        ('space.training.learning_rate={uniform=["a",1]}', "valid number"),
        ("space.training.learning_rate={choice=[-1]}", "greater than 0"),
        ("space.training.global_batch_size={choice=[64,65]}", "does not divide"),
        ("space.data.num_validation={choice=[100,200]}", "cannot be compared"),
        ("space.data.num_validation={choice=[1]}", "in [set] and in [space]"),
        ("set.data.num_validation=0", "the test set, which a sweep never looks at"),
        ("metric=validation_top2", "did you mean 'validation_top5'"),
        ("metric=test_top1", "is not what a job of task 'classifier' reports"),
        ("metric=validation.top1", "compares trials while they run"),
        ("mode=min", "'max' is better"),
        ("scheduler.grace_steps=10000", "must be below training.max_steps"),
        ("scheduler.name=hyperband", "valid are"),
        ("searcher.name=grid", "has no end of values"),
        ("base=cnnn", "did you mean 'cnn'"),
        ("base=fid", "which trains nothing"),
        ("num_trials=0", "greater than 0"),
        ('space.schedule.warmup_steps={choice=[1],when={"schedule.name"="linear"}}', "never holds"),
        ('space.schedule.warmup_steps={choice=[1],when={"model.width"=9}}', "is 8 in the base"),
        ('space.schedule.warmup_steps={choice=[1],when={"schedule.warmup_steps"=1}}', "wait for each other"),
    ],
)
def test_what_is_wrong_is_said_in_one_line_before_anything_starts(override: str, said: str) -> None:
    if override.startswith("space.data.num_validation={choice=[100"):
        sweep = load().model_copy(update={"set": {}, "space": space(data__num_validation={"choice": [100, 200]})})
        with pytest.raises(ConfigError) as caught:
            check_sweep(sweep)
    else:
        with pytest.raises(ConfigError) as caught:
            check_sweep(load(override))
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_unmeasured_generator_cannot_be_selected() -> None:
    with pytest.raises(ConfigError, match=r"set distance\.features"):
        check_sweep(load("set.distance.features=none", "set.distance.every=0", name="sweep-dcgan"))


def test_no_two_trials_are_the_same_and_a_small_space_ends(base: TrainingRecipe) -> None:
    small = space(
        seed={"choice": [1, 2, 3]},
        optimizer__name={"choice": ["adamw", "sgd"]},
        optimizer__momentum={"choice": [0.5, 0.9], "when": {"optimizer.name": "sgd"}},
    )
    found = list(samples(small, 0, base))
    assert sorted(map(str, found)) == sorted(map(str, grid(small, base)))
    assert len(found) == 9
    large = load()
    first = list(itertools.islice(samples(large.space, 0, base), NUM_TRIALS))
    assert first == [sample(large.space, 0, draw, base) for draw in range(NUM_TRIALS)]


def test_nested_and_dotted_keys_are_the_same() -> None:
    assert load("set.training.max_steps=2000").set["training.max_steps"] == 2000
    changed = load('space.schedule.warmup_steps={choice=[7],when.schedule.name="cosine"}')
    assert changed.space["schedule.warmup_steps"].when == {"schedule.name": "cosine"}


@pytest.mark.parametrize("seed", [0, 1])
def test_a_trial_is_a_function_of_seed_and_number(seed: int) -> None:
    sweep = load()
    base = base_of(sweep)
    trials = [sample(sweep.space, seed, trial, base) for trial in range(NUM_TRIALS)]
    again = [sample(sweep.space, seed, trial, base) for trial in reversed(range(NUM_TRIALS))]
    assert trials == again[::-1]
    assert trials != [sample(sweep.space, seed + 1, trial, base) for trial in range(NUM_TRIALS)]
    assert len({trial["training.learning_rate"] for trial in trials}) == NUM_TRIALS


def test_one_more_key_changes_nothing_for_the_others() -> None:
    sweep = load()
    base = base_of(sweep)
    more = {**space(label_smoothing={"uniform": [0.0, 0.2]}), **sweep.space}
    for trial in range(NUM_TRIALS):
        overrides = sample(more, 0, trial, base)
        assert 0.0 <= overrides.pop("label_smoothing") < 0.2
        assert overrides == sample(sweep.space, 0, trial, base)


@pytest.mark.parametrize(
    ("distribution", "valid"),
    [
        ({"uniform": [2.0, 3.0]}, lambda value: 2 <= value < 3),
        ({"loguniform": [1e-4, 1e-1]}, lambda value: 1e-4 <= value < 1e-1),
        ({"quniform": [0.0, 1.0, 0.25]}, lambda value: value in (0, 0.25, 0.5, 0.75, 1)),
        ({"randint": [3, 6]}, lambda value: value in (3, 4, 5)),
        ({"choice": ["a", True, 1.5]}, lambda value: value in ("a", True, 1.5)),
    ],
)
def test_values_lie_where_they_may_and_reach_all_of_it(
    distribution: dict[str, Any], valid: Any, base: TrainingRecipe
) -> None:
    drawn = [sample(space(key=distribution), 0, trial, base)["key"] for trial in range(4 * NUM_TRIALS)]
    assert all(valid(value) for value in drawn)
    if "niform" not in next(iter(distribution)) or "quniform" in distribution:
        assert all(value in drawn for value in values_of(Distribution(**distribution)))


def test_whole_steps_make_whole_numbers() -> None:
    values = values_of(Distribution(quniform=[32, 128, 32]))
    assert values == [32, 64, 96, 128]
    assert all(isinstance(value, int) for value in values)


def test_a_condition_decides_whether_a_key_is_set(base: TrainingRecipe) -> None:
    keys = space(
        schedule__warmup_steps={"choice": [100, 200], "when": {"schedule.name": "cosine"}},
        schedule__name={"choice": ["constant", "cosine"]},
    )
    seen = set()
    for trial in range(NUM_TRIALS):
        overrides = sample(keys, 0, trial, base)
        seen.add(overrides["schedule.name"])
        assert ("schedule.warmup_steps" in overrides) == (overrides["schedule.name"] == "cosine")
    assert seen == {"constant", "cosine"}
    assert len(grid(keys, base)) == 3  # constant, and cosine with each of the two


def test_a_grid_holds_every_combination_once(base: TrainingRecipe) -> None:
    keys = space(a={"choice": [1, 2]}, b={"randint": [0, 3]}, c={"quniform": [0.0, 1.0, 0.5]})
    found = [tuple(point.values()) for point in grid(keys, base)]
    assert found == list(itertools.product([1, 2], [0, 1, 2], [0.0, 0.5, 1.0]))


def test_another_optimizer_starts_from_its_own_defaults() -> None:
    sweep = load()
    recipe = trial_recipe(sweep, base_of(sweep), {"optimizer.nesterov": False, "optimizer.name": "sgd"})
    assert recipe.optimizer.name == "sgd"
    assert not recipe.optimizer.nesterov


def test_the_best_is_trained_on_all_samples_and_tested_once() -> None:
    sweep = load()
    best = best_recipe(sweep, base_of(sweep), {"training.learning_rate": 0.003})
    assert (best.data.num_validation, best.evaluation.every) == (0, 0)
    assert best.training.learning_rate == 0.003
    assert best.name == "sweep-cnn-best"


def test_more_trials_or_another_machine_do_not_make_another_sweep() -> None:
    assert sweep_hash(load()) == sweep_hash(load("num_trials=99", "max_concurrent=3", "cpus_per_trial=2"))
    assert sweep_hash(load()) != sweep_hash(load("seed=1"))
    assert sweep_hash(load()) != sweep_hash(load("set.training.max_steps=2000"))

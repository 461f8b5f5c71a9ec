"""Population-based training without its trainings: what may be searched, and who goes on from whom."""

from pathlib import Path
from typing import Any

import pytest

from cifarscale.config.load import load_recipe, with_values
from cifarscale.config.recipe import TrainingRecipe
from cifarscale.data.manifest import Manifest
from cifarscale.errors import ConfigError
from cifarscale.sweeps.exploration import check_population, difference, explored, num_replaced, perturbed
from cifarscale.sweeps.population import Population
from cifarscale.sweeps.recipe import Distribution, PbtConfig, SweepRecipe
from cifarscale.sweeps.space import base_of, best_recipe, check_sweep, sweep_hash
from cifarscale.sweeps.trials import COMPLETE, FAILED, STOPPED, WAITING, SweepFolder, Trial, shown_changes
from cifarscale.tasks.training import resolve

PBT = """
task = "sweep"
base = "cnn"
num_trials = 8

[set]
"data.num_validation" = 100
"training.max_steps" = 400
"evaluation.every" = 50

[scheduler]
name = "pbt"
interval_steps = 100

[space]
"training.learning_rate" = { loguniform = [1e-4, 1e-1] }
"optimizer.weight_decay" = { choice = [0.0, 1e-3, 1e-2] }
"augmentation.cutout" = { choice = [0, 4, 8], when = { "augmentation.flip" = true } }
"augmentation.flip" = { choice = [false, true] }
"""


def load(folder: Path, *overrides: str) -> SweepRecipe:
    path = folder / "pbt.toml"
    path.write_text(PBT)
    job = load_recipe(str(path), overrides)
    assert isinstance(job, SweepRecipe)
    return job


class Swept:
    """A population whose trials end as a test says, at once."""

    def __init__(self, path: Path, shards: Path, *overrides: str) -> None:
        path.mkdir(exist_ok=True)
        self.sweep, self.folder = load(path, *overrides), SweepFolder(path / "swept")
        self.base: TrainingRecipe = resolve(base_of(self.sweep), shards)
        self.folder.prepare(self.sweep, self.base)
        self._manifest = Manifest.load(shards)
        self.population = self.start()

    def start(self) -> Population:
        """As after the driver was killed."""
        self.folder.load()
        self.population = Population(self.sweep, self.base, self.folder, self._manifest)
        self.folder.save(0)
        return self.population

    def run(self, until: int = 400, failing: tuple[int, ...] = (), number: int = 1000) -> list[int]:
        """Runs up to a step, or so many trials. Returns: the trials that ran."""
        ran: list[int] = []
        while len(ran) < number and not self._are_all_at(until) and (trial := self.population.next()) is not None:
            assert trial.until is not None
            ran.append(trial.number)
            self._end(trial, trial.until, trial.number in failing)
            self.population.ended(trial)
            self.folder.save(0)
        return ran

    def _are_all_at(self, step: int) -> bool:
        members = {trial.member: trial for trial in self.folder.trials}.values()
        return all(trial.is_done or trial.died or trial.step >= step for trial in members)

    def _end(self, trial: Trial, step: int, fails: bool) -> None:
        rate = trial.overrides["training.learning_rate"]
        trial.step, trial.value = step, 1 - abs(rate - 1e-2) - 1 / step
        trial.state = COMPLETE if step == self.base.training.max_steps else WAITING
        if fails:
            trial.state, trial.died = FAILED, True

    def rows(self) -> list[tuple[Any, ...]]:
        return [(each.folder, each.state, each.origin, each.since, each.member) for each in self.folder.trials]


@pytest.fixture
def swept(tmp_path: Path, shards: Path) -> Swept:
    return Swept(tmp_path / "one", shards)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("space.model.width={choice=[4,8]}", "space.model.width: scheduler.name = 'pbt' changes keys in the middle"),
        ("space.training.global_batch_size={choice=[64]}", "training.global_batch_size cannot change then"),
        ('space.optimizer.name={choice=["sgd"]}', "optimizer.name cannot change then"),
        ("searcher.name=optuna", "searcher.name = 'optuna' has no effect"),
        ("num_trials=1", "has at least 2"),
        ("scheduler.interval_steps=75", "must be a multiple of the 50 steps"),
        ("scheduler.interval_steps=400", "below training.max_steps = 400"),
        ("scheduler.quantile=0.6", "less than or equal to 0.5"),
        ("scheduler.resample_probability=2", "less than or equal to 1"),
        ("metric=validation.top1", "compares trials while they run"),
        ("set.evaluation.every=0", "with evaluation.every above 0"),
    ],
)
def test_what_a_population_cannot_do_is_said_before_anything_starts(override: str, said: str, tmp_path: Path) -> None:
    def check() -> None:
        sweep = load(tmp_path, override)
        check_population(sweep, check_sweep(sweep))

    with pytest.raises(ConfigError) as caught:
        check()
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_member_can_go_back_to_the_values_of_the_base(tmp_path: Path) -> None:
    """A key that the base leaves unset has none to go back to."""
    path = tmp_path / "gan.toml"
    path.write_text(
        PBT.replace('"cnn"', '"dcgan"').replace('"data.num_validation" = 100', '"distance.features" = "cnn:runs/cnn"')
        + """
"discriminator_optimizer.learning_rate" = { loguniform = [1e-4, 1e-3], when = { "augmentation.flip" = true } }
""",
        encoding="utf-8",
    )
    sweep = load_recipe(str(path), ['metric="frechet_distance"', 'mode="min"', "set.distance.every=50"])
    assert isinstance(sweep, SweepRecipe)
    with pytest.raises(ConfigError) as caught:
        check_population(sweep, base_of(sweep))
    said = "gets the base's value back when augmentation.flip = True holds no longer, and the base leaves it unset"
    assert said in str(caught.value)
    check_population(sweep, with_values(base_of(sweep), discriminator_optimizer__learning_rate=2e-4))


def test_the_size_of_a_population_is_part_of_what_it_searches(tmp_path: Path) -> None:
    assert sweep_hash(load(tmp_path)) != sweep_hash(load(tmp_path, "num_trials=9"))
    assert sweep_hash(load(tmp_path)) == sweep_hash(load(tmp_path, "max_concurrent=3"))


@pytest.mark.parametrize(
    ("distribution", "value", "valid"),
    [
        ({"uniform": [0.0, 1.0]}, 0.5, {0.5 * 0.8, 0.5 * 1.2}),
        ({"uniform": [0.0, 1.0]}, 0.9, {0.9 * 0.8, 1.0}),
        ({"loguniform": [1e-3, 1.0]}, 1e-3, {1e-3, 1e-3 * 1.2}),
        ({"choice": ["a", "b", "c"]}, "b", {"a", "c"}),
        ({"choice": ["a", "b", "c"]}, "c", {"b"}),
        ({"choice": ["a"]}, "a", {"a"}),
        ({"quniform": [0.0, 1.0, 0.25]}, 0.5, {0.25, 0.75}),
        ({"randint": [3, 6]}, 3, {4}),
    ],
)
def test_a_value_moves_to_its_neighbours_and_stays_within_bounds(
    distribution: dict[str, Any], value: Any, valid: set[Any]
) -> None:
    found = {perturbed(Distribution(**distribution), value, uniform) for uniform in (0.0, 0.49, 0.5, 0.99)}
    assert found == valid


def test_what_is_explored_follows_from_seed_generation_and_member_alone(tmp_path: Path) -> None:
    sweep = load(tmp_path)
    base = base_of(sweep)
    before = {"training.learning_rate": 1e-2, "optimizer.weight_decay": 0.0, "augmentation.flip": False}
    places = [(generation, member) for generation in range(1, 9) for member in range(8)]
    found = [explored(sweep, base, before, *place) for place in places]
    assert found == [explored(sweep, base, before, *place) for place in reversed(places)][::-1]
    rates = [values["training.learning_rate"] for values in found]
    near = [rate for rate in rates if rate in (1e-2 * 0.8, 1e-2 * 1.2)]
    assert 0.6 < len(near) / len(rates) < 0.9  # the rest are drawn anew
    assert len(set(rates) - set(near)) == len(rates) - len(near)
    for values in found:
        assert ("augmentation.cutout" in values) == values["augmentation.flip"]
    other = load(tmp_path, "seed=1")
    assert found != [explored(other, base, before, *place) for place in places]


def test_a_key_whose_condition_ends_gets_the_bases_value_back(tmp_path: Path) -> None:
    base = base_of(load(tmp_path))
    before, after = {"augmentation.flip": True, "augmentation.cutout": 8}, {"augmentation.flip": False}
    assert difference(base, before, after) == {"augmentation.flip": False, "augmentation.cutout": 0}
    assert difference(base, after, before) == before
    assert difference(base, before, before) == {}


@pytest.mark.parametrize(("members", "quantile", "replaced"), [(8, 0.25, 2), (3, 0.25, 1), (2, 0.5, 1), (5, 0.5, 2)])
def test_never_more_than_half_are_replaced(members: int, quantile: float, replaced: int) -> None:
    assert num_replaced(members, PbtConfig(quantile=quantile)) == replaced


def test_the_worst_go_on_from_the_best_with_changed_values(swept: Swept) -> None:
    assert swept.run(until=100) == list(range(8))
    swept.run(until=200)
    order = sorted(swept.folder.trials[:8], key=lambda trial: abs(trial.overrides["training.learning_rate"] - 1e-2))
    best, worst = [trial.number for trial in order[:2]], order[-2:]
    new = swept.folder.trials[8:10]
    assert {trial.member for trial in new} == {trial.number for trial in worst}
    for trial in new:
        assert trial.origin in best
        assert trial.since == 100
        assert f"from trial {trial.origin} at step 100: " in shown_changes(trial)
        recipe = swept.folder.run(trial).load_training_recipe()
        origin = swept.folder.trials[trial.origin or 0]
        assert recipe.training.learning_rate == origin.overrides["training.learning_rate"]
        assert [change.step for change in recipe.later] == [100]
    for trial in worst:
        assert trial.state == STOPPED
        assert "took its place at step 100" in trial.reason


def test_the_best_is_a_schedule(swept: Swept) -> None:
    swept.run()
    grown = [trial for trial in swept.folder.trials if len(trial.schedule) > 2]
    assert grown
    for trial in grown:
        best = best_recipe(swept.sweep, swept.base, trial.recipe_values)
        assert best.later == swept.folder.run(trial).load_training_recipe().later
        assert best.data.num_validation == 0


def test_all_come_to_the_end_and_then_it_is_over(swept: Swept) -> None:
    ran = swept.run()
    members = {trial.member: trial for trial in swept.folder.trials}
    assert [trial.state for trial in members.values()] == [COMPLETE] * 8
    assert len(swept.folder.trials) == 8 + 3 * 2
    assert len(ran) == 4 * 8
    assert swept.population.next() is None
    assert not swept.population.waits


def test_it_waits_for_those_that_still_run(swept: Swept) -> None:
    trials = [swept.population.next() for _ in range(8)]
    assert all(trials)
    assert swept.population.next() is None
    assert swept.population.waits


@pytest.mark.parametrize("number", [1, 8, 11, 19])
def test_killed_anywhere_it_goes_on_to_the_same(swept: Swept, tmp_path: Path, shards: Path, number: int) -> None:
    other = Swept(tmp_path / "other", shards)
    before = other.run(number=number)
    other.start()
    after = other.run()
    assert [*before, *after] == swept.run()
    assert other.rows() == swept.rows()


def test_members_that_failed_are_replaced_first(swept: Swept) -> None:
    swept.run(until=200, failing=(1, 4, 5))
    assert {trial.member for trial in swept.folder.trials[8:11]} == {1, 4, 5}
    assert [swept.folder.trials[number].state for number in (1, 4, 5)] == [FAILED] * 3
    assert sum(trial.state == STOPPED for trial in swept.folder.trials) == 0
    swept.run()
    members = {trial.member: trial for trial in swept.folder.trials}
    assert [trial.state for trial in members.values()] == [COMPLETE] * 8


def test_where_all_have_failed_it_is_over(swept: Swept) -> None:
    swept.run(failing=tuple(range(8)))
    assert len(swept.folder.trials) == 8
    assert swept.population.next() is None
    assert not swept.population.waits


def test_a_member_that_would_repeat_another_is_replaced_by_a_new_one(tmp_path: Path, shards: Path) -> None:
    swept = Swept(tmp_path / "few", shards, "space.training.learning_rate={choice=[1e-2,2e-2]}", "num_trials=16")
    repeated = [trial.number for trial in swept.folder.trials if trial.state == "repeated"]
    assert repeated
    ran = swept.run(until=100)
    assert not set(repeated) & set(ran)
    swept.run(until=200)
    members = {trial.member: trial for trial in swept.folder.trials}
    assert {members[number].origin is not None for number in repeated} == {True}

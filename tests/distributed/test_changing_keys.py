"""Runs whose keys change on the way: what changes when, and that such a run is a function of its recipe, too."""

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import Run, run_recipe

from cifarscale.config.load import load_training_recipe, parse_recipe, recipe_hash, recipe_toml, resolved
from cifarscale.config.recipe import stages_of
from cifarscale.errors import ConfigError, Interrupted
from cifarscale.runs.options import RunOptions
from cifarscale.runs.run_folder import RunFolder
from cifarscale.sweeps.population import continue_from
from cifarscale.tasks.training import resolve
from cifarscale.training.signals import StopRequest

pytestmark = pytest.mark.distributed

CHANGED = {"training.learning_rate": 0.02, "optimizer.weight_decay": 0.5}
"""Of the tiny recipe of 20 steps, whose rate is 0.001."""
AT = 7
"""Where no checkpoint, log line or evaluation is due but for the change."""


def changing(*changes: tuple[int, dict[str, Any]]) -> str:
    """An override that changes keys on the way."""
    tables = (
        f"{{step={step}, set={{{', '.join(f'{key}={value}' for key, value in values.items())}}}}}"
        for step, values in changes
    )
    return f"later=[{', '.join(tables)}]"


@pytest.fixture(scope="module")
def plain(train_here: Callable[..., Run], tmp_path_factory: pytest.TempPathFactory) -> Run:
    return train_here(tmp_path_factory.mktemp("plain") / "run")


@pytest.fixture(scope="module")
def changed(train_here: Callable[..., Run], tmp_path_factory: pytest.TempPathFactory) -> Run:
    return train_here(tmp_path_factory.mktemp("changed") / "run", changing((AT, CHANGED)))


@pytest.mark.parametrize(
    ("later", "said"),
    [
        (changing((5, {"model.width": 8})), "model.width cannot change at step 5"),
        (changing((5, {"training.learning_rat": 8})), "training.learning_rat cannot change at step 5"),
        (changing((5, {"training.learning_rate": -1})), "at step 5: training.learning_rate = -1"),
        (changing((5, {"augmentation.fli": 1})), "at step 5: unknown key 'augmentation.fli'"),
        (changing((5, {}), (5, {})), "step = 5 is not before 5"),
        (changing((20, {})), "before training.max_steps = 20"),
        (changing((0, {})), "greater than 0"),
    ],
)
def test_what_cannot_change_is_said_in_one_line(later: str, said: str, tiny: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load_training_recipe(str(tiny), (later,))
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_changes_add_up_and_load_again_as_they_are(tiny: Path, tmp_path: Path) -> None:
    recipe = load_training_recipe(str(tiny), (changing((5, CHANGED), (9, {"label_smoothing": 0.1})),))
    path = tmp_path / "tiny.toml"
    path.write_text(recipe_toml(recipe))
    assert load_training_recipe(str(path)) == recipe
    assert recipe_hash(recipe) != recipe_hash(load_training_recipe(str(tiny)))
    stages = stages_of(recipe)
    assert [stage.until for stage in stages] == [5, 9, 20]
    assert [stage.recipe.training.learning_rate for stage in stages] == [0.001, 0.02, 0.02]
    assert [stage.recipe.optimizer.weight_decay for stage in stages] == [0, 0.5, 0.5]
    nested = {
        **resolved(load_training_recipe(str(tiny))),
        "later": [{"step": 5, "set": {"training": {"learning_rate": 1.0}}}],
    }
    assert stages_of(parse_recipe(nested, "nested"))[1].recipe.training.learning_rate == 1  # type: ignore[arg-type]


def test_before_the_change_nothing_differs_and_after_it_all_does(plain: Run, changed: Run) -> None:
    before = [line for line in plain.metrics() if line["step"] <= AT]
    assert before == changed.metrics()[: len(before)]
    rates = [line["learning_rate"] for line in changed.metrics() if "learning_rate" in line]
    assert rates == [0.001] * AT + [0.02] * (20 - AT)
    groups = changed.state()["optimizers"]["classifier"]["param_groups"]
    assert groups[0]["weight_decay"] == 0.5
    assert plain.result() != changed.result()


@pytest.mark.parametrize("step", [3, AT, 12])
def test_interrupted_anywhere_it_ends_the_same(
    step: int, changed: Run, tiny: Path, shards: Path, tmp_path: Path
) -> None:
    recipe, stop = load_training_recipe(str(changed.path / "recipe.toml")), StopRequest()
    stop.after_step = step
    with pytest.raises(Interrupted, match=f"after step {step}, where it was asked to stop"):
        run_recipe(recipe, tmp_path / "run", RunOptions(shards, "cpu"), None, stop)
    assert Run(tmp_path / "run").state()["step"] == step
    run_recipe(recipe, tmp_path / "run", RunOptions(shards, "cpu"))
    Run(tmp_path / "run").assert_same_as(changed)


def test_an_average_begins_as_the_weights_are_goes_on_and_ends(plain: Run, shards: Path, tmp_path: Path) -> None:
    later = changing(
        (AT, {"training.ema_decay": 0.2}), (12, {"training.ema_decay": 0.9}), (16, {"training.ema_decay": 0})
    )
    recipe = resolve(load_training_recipe(str(plain.path / "recipe.toml"), (later,)), shards)
    states = {}
    for step in (AT, AT + 1, 12, 13, 20):
        stop = StopRequest()
        stop.after_step = step
        with contextlib.suppress(Interrupted):
            run_recipe(recipe, tmp_path / "run", RunOptions(shards, "cpu"), None, stop)
        states[step] = Run(tmp_path / "run").state()
    assert states[AT]["averages"] == states[20]["averages"] == {}
    for before, decay in ((AT, 0.2), (12, 14 / 23)):  # the second is what 0.9 has grown to at step 13
        was = states[before]["averages"] or states[before]["networks"]
        now, weights = (states[before + 1][part]["classifier"] for part in ("averages", "networks"))
        for name in now:
            expected = torch.lerp(was["classifier"][name].double(), weights[name].double(), 1 - decay)
            torch.testing.assert_close(now[name].double(), expected, rtol=1e-5, atol=1e-7)
    assert Run(tmp_path / "run").state()["step"] == 20
    assert Run(tmp_path / "run").result()["test"] == plain.result()["test"]  # of the weights themselves


def test_two_ranks_do_the_same(changed: Run, cifarscale: Callable[..., Any], shards: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    ended = cifarscale("train", changed.path / "recipe.toml", "--data", shards, "--run-dir", folder, "--nproc", 2)
    assert ended.returncode == 0, ended.stderr
    Run(folder).assert_same_as(changed)


def test_a_run_that_takes_over_what_another_has_computed_ends_the_same(
    plain: Run, changed: Run, shards: Path, tmp_path: Path
) -> None:
    origin, stop = RunFolder(tmp_path / "origin"), StopRequest()
    stop.after_step = AT
    with pytest.raises(Interrupted):
        run_recipe(
            load_training_recipe(str(plain.path / "recipe.toml")), origin.path, RunOptions(shards, "cpu"), None, stop
        )
    recipe, run = load_training_recipe(str(changed.path / "recipe.toml")), RunFolder(tmp_path / "run")
    run.prepare(recipe)
    continue_from(origin, run)
    assert Run(run.path).last_step() == AT
    run_recipe(recipe, run.path, RunOptions(shards, "cpu"))
    Run(run.path).assert_same_as(changed)

"""Sweeps with a real Ray: tiny trainings on the drawn set, and what happens when processes die."""

import os
import signal
from pathlib import Path
from typing import Any

import pytest
from runs import PATIENCE_S, wait_until
from sweep_runs import LEARNING_RATES, Sweep, cifarscale, command_of, is_raylet, process_of, started_for

from cifarscale.config.load import load_recipe, load_training_recipe
from cifarscale.data.manifest import Manifest
from cifarscale.runs.options import RunOptions
from cifarscale.sweeps.prepared import prepare_sweep
from cifarscale.sweeps.recipe import SweepRecipe
from cifarscale.sweeps.search import make_search
from cifarscale.sweeps.trials import COMPLETE

pytestmark = pytest.mark.sweep


def test_the_best_trial_is_a_recipe_that_trains_and_one_that_diverges_is_marked_with_its_reason(
    sweep: Sweep, shards: Path, tmp_path: Path
) -> None:
    sweep.write('"training.learning_rate" = { choice = [1e30, 1e-3, 1e-2] }', searcher="grid")
    output = sweep.run()
    assert sweep.states() == ["failed", "complete", "complete"]
    assert "is not finite" in sweep.trials()[0]["reason"] or "are not finite" in sweep.trials()[0]["reason"]
    assert sweep.trials()[0]["starts"] == 1
    assert "trial 0 failed" in output
    assert "is on the validation split" in output
    for name in ("curves.png", "parallel.png"):
        assert (sweep.path / "plots" / name).is_file()
        assert name in output
    best = load_training_recipe(str(sweep.path / "best.toml"))
    assert best.data.num_validation == 0
    winner = max(sweep.trials()[1:], key=lambda trial: trial["value"])
    assert best.training.learning_rate == winner["overrides"]["training.learning_rate"]
    trained = cifarscale(
        "train", str(sweep.path / "best.toml"), "--data", str(shards), "--run-dir", str(tmp_path / "best")
    )
    assert "test" in trained
    assert "validation" not in trained
    again = cifarscale("train", str(sweep.result(1).parent / "recipe.toml"), "--data", str(shards))
    assert "is complete" in again
    assert "complete" in cifarscale("sweep-status", str(sweep.path))


SCRIPT = """
import signal, sys
from concurrent.futures import ThreadPoolExecutor

import cifarscale as cs

recipe, shards, folder = sys.argv[1:]
before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
sweep = cs.sweep(recipe, num_trials=1, data=shards, run_dir=folder)
with ThreadPoolExecutor(1) as threads:
    more = threads.submit(cs.sweep, recipe, num_trials=2, data=shards, run_dir=folder).result()
assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
assert [trial["state"] for trial in sweep.trials()] == ["complete"] * 2
assert more.result["best"]["overrides"]["training.learning_rate"] == more.best.training.learning_rate
assert {trial["training.learning_rate"] for trial in more.trials()} > {more.best.training.learning_rate}
assert isinstance(cs.load(folder), cs.Sweep)
print(cs.train(more.best, data=shards, device="cpu", run_dir=folder + "-best").result["steps"])
"""


@pytest.mark.thorough
def test_a_script_sweeps_twice_in_one_process_and_trains_the_best(sweep: Sweep) -> None:
    sweep.write()
    output = sweep.script(SCRIPT)
    assert output.splitlines()[-1] == "30"


@pytest.mark.thorough
def test_a_trial_whose_process_is_killed_is_started_again_from_its_checkpoint(sweep: Sweep) -> None:
    sweep.write(max_steps=300)
    process = sweep.start("--num-trials", "2")
    os.kill(process_of(sweep), signal.SIGKILL)
    output, _ = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, output
    assert sweep.states() == ["complete"] * 2
    assert sorted(trial["starts"] for trial in sweep.trials()) == [1, 2]


@pytest.mark.thorough
def test_a_node_whose_ray_is_killed_joins_again(sweep: Sweep) -> None:
    sweep.write(max_steps=300)
    process = sweep.start("--profile", "local", "--nodes", "2", command="submit")
    process_of(sweep)
    second = next(pid for pid in started_for(sweep.path) if is_raylet(pid) and "--head" not in command_of(pid))
    os.kill(second, signal.SIGKILL)
    output, _ = process.communicate(timeout=2 * PATIENCE_S)
    assert process.returncode == 0, output
    assert sweep.states() == ["complete"] * 4
    assert "is started again" in (sweep.path / "logs/rank-1.log").read_text()


@pytest.mark.thorough
def test_a_sweep_whose_trials_all_fail_ends_with_1(sweep: Sweep) -> None:
    sweep.write('"training.learning_rate" = { choice = [1e30] }', searcher="grid")
    process = sweep.start()
    output, _ = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 1, output
    assert "No trial produced a result." in output


@pytest.mark.thorough
def test_a_killed_sweep_goes_on_and_repeats_no_finished_trial(sweep: Sweep) -> None:
    sweep.write(max_steps=200)
    process = sweep.start()
    wait_until(lambda: list(sweep.path.glob("trials/*/result.json")), "no trial ends")
    process.kill()
    process.wait()
    finished = {path: path.stat().st_mtime_ns for path in sweep.path.glob("trials/*/result.json")}
    assert 1 <= len(finished) < 4
    refused = sweep.start()
    output, _ = refused.communicate(timeout=PATIENCE_S)
    assert refused.returncode == 1
    assert "--resume" in output
    sweep.run("--resume")
    assert sweep.states() == ["complete"] * 4
    assert all(path.stat().st_mtime_ns == written for path, written in finished.items())
    for trial in sweep.trials():
        path = sweep.result(trial["number"])
        assert trial["starts"] == 1 or path not in finished


def test_a_sweep_that_is_asked_to_stop_says_how_to_go_on(sweep: Sweep) -> None:
    sweep.write(max_steps=2000)
    process = sweep.start("--num-trials", "2", "--max-concurrent", "1")
    process_of(sweep)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 75, output
    assert "--resume" in output
    assert sweep.states() == ["interrupted", "waiting"]
    refused = sweep.start("--num-trials", "2")
    output, _ = refused.communicate(timeout=PATIENCE_S)
    assert refused.returncode == 1
    assert "--resume" in output


@pytest.mark.thorough
def test_a_sweep_whose_time_is_up_is_complete_until_it_gets_more(sweep: Sweep) -> None:
    sweep.write(max_steps=3000)
    output = sweep.run("--set", "time_budget_min=0.4")
    assert "the sweep ended early: time_budget_min = 0.4 is used up" in output
    assert "best    " in output
    assert set(sweep.states()) & {"interrupted", "waiting"}
    steps = [trial["step"] for trial in sweep.trials()]
    assert "ended early" in sweep.run("--set", "time_budget_min=0.4")  # shown, not run
    sweep.run("--resume", "--set", "time_budget_min=0.6")
    assert sum(trial["step"] for trial in sweep.trials()) > sum(steps)


@pytest.fixture
def conditional(sweep: Sweep) -> Sweep:
    """With Optuna, and a key that depends on the value of another."""
    pytest.importorskip("optuna", reason="Optuna is not installed")
    sweep.write(
        '"optimizer.name" = { choice = ["adamw", "sgd"] }\n'
        '"optimizer.nesterov" = { choice = [true, false], when = { "optimizer.name" = "sgd" } }\n' + LEARNING_RATES,
        searcher="optuna",
    )
    return sweep


def assert_conditions(values: dict[str, Any]) -> None:
    assert ("optimizer.nesterov" in values) == (values["optimizer.name"] == "sgd")


def test_optuna_proposes_values_that_suit_their_conditions(conditional: Sweep, shards: Path) -> None:
    """Many more than are worth training; what comes of each is made up."""
    recipe = load_recipe(str(conditional.recipe), ["num_trials=30"])
    assert isinstance(recipe, SweepRecipe)
    prepared = prepare_sweep(recipe, conditional.path, str(shards), RunOptions())
    prepared.make_folder()
    folder = prepared.folder
    search = make_search(recipe, prepared.base, folder, Manifest.load(shards))
    while (trial := search.next()) is not None:
        assert_conditions(trial.overrides)
        trial.state, trial.value = COMPLETE, trial.overrides["training.learning_rate"]
        search.ended(trial)
    rates = [trial.overrides["training.learning_rate"] for trial in folder.trials]
    assert len(rates) == 30
    assert sum(rates[20:]) > sum(rates[:10])  # it learns that more is better


@pytest.mark.thorough
def test_a_sweep_of_optuna_s_values_completes(conditional: Sweep) -> None:
    conditional.run()
    assert conditional.states() == ["complete"] * 4
    for trial in conditional.trials():
        assert_conditions(trial["overrides"])

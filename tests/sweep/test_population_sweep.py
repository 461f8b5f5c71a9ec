"""Population-based training with a real Ray."""

import os
import signal
from pathlib import Path
from typing import Any

import pytest
from runs import PATIENCE_S, Run, run_recipe, wait_until
from sweep_runs import Sweep, cifarscale, process_of

from cifarscale.config.load import load_training_recipe
from cifarscale.runs.options import RunOptions

pytestmark = pytest.mark.sweep

SPACE = """
"training.learning_rate" = { loguniform = [1e-4, 1e-1] }
"optimizer.weight_decay" = { choice = [0.0, 1e-3, 1e-2] }

[scheduler]
name = "pbt"
interval_steps = 20
resample_probability = 0.5
"""


def of_each(sweep: Sweep, *keys: str) -> list[list[Any]]:
    return [[trial[key] for key in keys] for trial in sweep.trials()]


@pytest.mark.thorough
def test_a_killed_population_comes_to_the_same_and_each_trial_to_what_it_comes_to_alone(
    shards: Path, tmp_path: Path, sweep: Sweep
) -> None:
    sweep.write(SPACE, max_steps=60)
    output = sweep.run("--num-trials", "3", "--max-concurrent", "2")
    assert len(sweep.trials()) == 5
    assert "from trial" in output
    best = load_training_recipe(str(sweep.path / "best.toml"))
    winner = max((trial for trial in sweep.trials() if trial["state"] == "complete"), key=lambda each: each["value"])
    assert [change.step for change in best.later] == [change["step"] for change in winner["schedule"][1:]]

    again = sweep.beside("again")
    process = again.start("--num-trials", "3", "--max-concurrent", "1")
    os.kill(process_of(again), signal.SIGKILL)  # which is tried again
    wait_until(lambda: "stopped" in again.states(), "nobody is replaced")
    assert process.poll() is None
    process.kill()
    process.wait()
    output = again.run("--resume", "--num-trials", "3", "--max-concurrent", "1")
    keys = ("folder", "overrides", "state", "step", "value", "member", "origin", "since", "schedule")
    assert of_each(again, *keys) == of_each(sweep, *keys)

    for trial in sweep.trials():
        if trial["origin"] is not None and trial["state"] == "complete":
            run = Run(sweep.result(trial["number"]).parent)
            run_recipe(
                load_training_recipe(str(run.path / "recipe.toml")), tmp_path / "alone", RunOptions(shards, "cpu")
            )
            Run(tmp_path / "alone").assert_same_as(run)
            break
    assert "from trial" in cifarscale("sweep-status", str(again.path))


def test_a_key_that_cannot_change_is_refused_before_anything_starts(sweep: Sweep) -> None:
    sweep.write('"model.width" = { choice = [4, 8] }\n' + SPACE)
    process = sweep.start()
    output, _ = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 1
    assert "model.width cannot change then" in output
    assert not sweep.path.exists()

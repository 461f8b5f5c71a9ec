"""Trials of a real Ray as W&B has them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from runs import Run

pytestmark = pytest.mark.sweep

SWEEP = """
task = "sweep"
base = "{base}"
num_trials = 2
max_concurrent = 1

[set]
"data.num_validation" = 107

[space]
"training.learning_rate" = {{ choice = [1e-4, 1e-3] }}

[searcher]
name = "grid"
"""


def test_each_trial_is_a_run_in_the_group_of_its_sweep(
    recipes: Path, shards: Path, cifarscale: Callable[..., Any], recorded: Callable[..., Any], tmp_path: Path
) -> None:
    recipe, folder = tmp_path / "sweep-tiny.toml", tmp_path / "swept"
    recipe.write_text(SWEEP.format(base=recipes / "cnn.toml"), encoding="utf-8")
    ended = cifarscale("sweep", recipe, "--data", shards, "--run-dir", folder, "--wandb", "offline")
    assert ended.returncode == 0, ended.stderr
    trials = sorted((folder / "trials").iterdir())
    rates = set()
    for trial in trials:
        found = recorded(trial)
        (run,) = found.of("run")
        assert (run["display_name"], run["run_group"]) == (trial.name, "swept")
        assert found.steps == sorted({line["step"] for line in Run(trial).metrics()})
        assert found.summary["validation/top1"] == Run(trial).result()["validation"]["top1"]
        rates.add(found.config["training"]["learning_rate"])
    assert rates == {1e-4, 1e-3}

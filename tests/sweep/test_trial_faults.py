"""Trials of several ranks, and trials that run out of memory."""

import os
import signal
from pathlib import Path

import pytest
from runs import PATIENCE_S, Run, planted
from sweep_runs import Sweep, process_of

from cifarscale.config.load import load_recipe
from cifarscale.run import Placement, run_job

pytestmark = pytest.mark.sweep

OUT_OF_MEMORY = """
import os
if "CIFARSCALE_RAY_FOLDER" in os.environ:
    from cifarscale.training.engine import Engine
    train_step = Engine._train_step
    def greedy(self, *arguments):
        train_step(self, *arguments)
        if self._recipe.training.learning_rate == 2e-3 and self._step == 15:
            raise MemoryError("Unable to allocate 8.00 EiB")
    Engine._train_step = greedy
"""


def alone(run: Run, shards: Path, folder: Path) -> Run:
    """The same recipe, trained by this process."""
    run_job(load_recipe(str(run.path / "recipe.toml")), folder, Placement(shards, "cpu"))
    return Run(folder)


def test_a_trial_of_two_workers_computes_what_one_process_does_also_after_one_was_killed(
    sweep: Sweep, shards: Path, tmp_path: Path
) -> None:
    sweep.write(max_steps=200)
    process = sweep.start("--num-trials", "2", "--max-concurrent", "1", "--workers-per-trial", "2")
    os.kill(process_of(sweep), signal.SIGKILL)
    output, _ = process.communicate(timeout=2 * PATIENCE_S)
    assert process.returncode == 0, output
    assert sweep.states() == ["complete"] * 2
    assert [trial["starts"] for trial in sweep.trials()] == [2, 1]
    for number in range(2):
        run = Run(sweep.result(number).parent)
        assert run.result()["world_size"] == 2
        run.assert_same_as(alone(run, shards, tmp_path / f"alone-{number}"))


def test_a_trial_that_runs_out_of_memory_is_tried_again_and_then_marked_with_its_reason(
    sweep: Sweep, tmp_path: Path
) -> None:
    sweep.write('"training.learning_rate" = { choice = [2e-3, 1e-3, 1e-2] }', searcher="grid")
    process = sweep.start(environment=planted(tmp_path, OUT_OF_MEMORY))
    output, _ = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, output
    assert sweep.states() == ["failed", "complete", "complete"]
    assert "MemoryError: Unable to allocate 8.00 EiB (started 2 times)" in sweep.trials()[0]["reason"]
    assert "trial 0 failed: MemoryError" in output

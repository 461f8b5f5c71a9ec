"""Trials of several ranks, and trials that run out of memory or die again and again."""

import os
import signal
from pathlib import Path

import pytest
from runs import PATIENCE_S, Run, planted_after, run_recipe
from sweep_runs import Sweep, process_of

from cifarscale.config.load import load_recipe, load_training_recipe
from cifarscale.errors import ConfigError
from cifarscale.launch.run import prepare
from cifarscale.runs.options import RunOptions
from cifarscale.sweeps.ray.failure import cause_in
from cifarscale.sweeps.recipe import SweepRecipe

pytestmark = pytest.mark.sweep

AT_STEP_15 = """
train_step = Engine._train_step
def greedy(self, *arguments):
    train_step(self, *arguments)
    if self._recipe.training.learning_rate == 2e-3 and self._step == 15:
        {fault}
Engine._train_step = greedy
"""
KILLED = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
"""As the kernel and Ray do with a process that takes too much memory."""
OUT_OF_MEMORY = 'raise MemoryError("Unable to allocate 8.00 EiB")'
DIED = "its process died: it was killed, or ran out of memory"


def planted_fault(folder: Path, fault: str) -> dict[str, str]:
    """The environment of a sweep whose trial with this learning rate comes to it."""
    program = AT_STEP_15.format(fault=fault)
    return planted_after("cifarscale.training.engine", folder, program, "CIFARSCALE_RAY_FOLDER")


def alone(run: Run, shards: Path, folder: Path) -> Run:
    """The same recipe, trained by this process."""
    run_recipe(load_training_recipe(str(run.path / "recipe.toml")), folder, RunOptions(shards, "cpu"))
    return Run(folder)


def test_a_trial_of_two_workers_computes_what_one_process_does_also_after_one_was_killed(
    sweep: Sweep, shards: Path, tmp_path: Path
) -> None:
    sweep.write(max_steps=100)
    process = sweep.start("--num-trials", "1", "--workers-per-trial", "2")
    os.kill(process_of(sweep), signal.SIGKILL)
    output, _ = process.communicate(timeout=2 * PATIENCE_S)
    assert process.returncode == 0, output
    assert sweep.states() == ["complete"]
    assert sweep.trials()[0]["starts"] == 2
    run = Run(sweep.result(0).parent)
    assert run.result()["world_size"] == 2
    run.assert_same_as(alone(run, shards, tmp_path / "alone"))


@pytest.mark.thorough
def test_a_trial_that_runs_out_of_memory_is_tried_again_and_then_marked_with_its_reason(
    sweep: Sweep, tmp_path: Path
) -> None:
    sweep.write('"training.learning_rate" = { choice = [2e-3, 1e-3, 1e-2] }', searcher="grid")
    process = sweep.start(environment=planted_fault(tmp_path, OUT_OF_MEMORY))
    output, _ = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, output
    assert sweep.states() == ["failed", "complete", "complete"]
    assert sweep.trials()[0]["reason"] == "MemoryError: Unable to allocate 8.00 EiB (started 2 times)"
    assert "trial 0 failed: MemoryError" in output


@pytest.mark.thorough
def test_a_trial_whose_process_dies_each_time_is_marked_and_the_others_go_on(sweep: Sweep, tmp_path: Path) -> None:
    sweep.write('"training.learning_rate" = { choice = [2e-3, 1e-3] }', searcher="grid")
    process = sweep.start(environment=planted_fault(tmp_path, KILLED))
    output, _ = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, output
    assert sweep.states() == ["failed", "complete"]
    assert sweep.trials()[0]["reason"] == f"{DIED} (started 2 times)"
    assert "trial 0 failed: " in output


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("workers_per_trial=5", "in 4 microbatches feed at most 4 ranks, and there would be 5"),
        ("space.training.microbatches={choice=[2,8]}", "in 2 microbatches feed at most 2 ranks, and there would be 4"),
        ("cpus_per_trial=3", "workers_per_trial = 4 of 3 cores each, and this machine has room for 2"),
        ("gpus_per_trial=1", "workers_per_trial = 4 of 1 cores and 1 GPUs each, and this machine has room for 2"),
    ],
)
def test_workers_that_do_not_fit_are_refused_in_one_line(override: str, said: str, shards: Path) -> None:
    sweep = load_recipe("sweep-cnn", ["set.data.num_validation=100", "workers_per_trial=4", override])
    assert isinstance(sweep, SweepRecipe)

    def check() -> None:
        sweep.check_nodes(1, num_cpus=6, num_gpus=2, where="this machine")
        prepare(sweep, None, str(shards))

    with pytest.raises(ConfigError) as caught:
        check()
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        ("Failure # 1 (at)\nray::x\n  File\nValueError: one\n", "ValueError: one"),
        ("Failure # 1 (at)\nValueError: one\nFailure # 2 (at)\n  File\nMemoryError\n", "MemoryError"),
        (
            "Failure # 1 (at)\ntorch.OutOfMemoryError: CUDA out of memory.\n",
            "torch.OutOfMemoryError: CUDA out of memory.",
        ),
        (
            "Failure # 1 (at)\nThe actor died unexpectedly before …\n",
            DIED,
        ),
        (
            "Failure # 1 (at)\nThe actor is dead because its worker process has died. … due to the node running low on "
            "memory.\n",
            "Ray ended its process, since the node ran low on memory",
        ),
        ("", "its process ended"),
    ],
)
def test_what_ray_writes_of_a_failure_becomes_one_line(text: str, cause: str) -> None:
    assert cause_in(text) == cause

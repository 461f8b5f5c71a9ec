"""Sweeps with a real Ray: tiny trainings on the drawn set, and what happens when processes die."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cifarscale.config.load import load_recipe
from tests.runs import PATIENCE_S

pytestmark = pytest.mark.sweep

RECIPE = """
task = "sweep"
base = "demo"
num_trials = 4
max_concurrent = 2

[set]
"data.num_validation" = 100
"training.max_steps" = {max_steps}
"training.global_batch_size" = 16
"training.log_every" = 5
"training.checkpoint_every" = 10
"evaluation.every" = 10

[searcher]
name = "{searcher}"

[space]
{space}
"""
LEARNING_RATES = '"training.learning_rate" = { loguniform = [1e-4, 1e-2] }'
MARK = "CIFARSCALE_TEST_SWEEP"
"""Environment variable by which a test knows the processes that it has started."""


class Sweep:
    """A sweep that is run by the command line, in its folder."""

    def __init__(self, folder: Path, shards: Path) -> None:
        self.path, self._shards = folder / "swept", shards
        self._recipe = folder / "tiny.toml"
        self._started: list[subprocess.Popen[str]] = []

    def write(self, space: str = LEARNING_RATES, max_steps: int = 30, searcher: str = "random") -> None:
        self._recipe.write_text(RECIPE.format(space=space, max_steps=max_steps, searcher=searcher))

    def start(self, *options: str, command: str = "sweep") -> subprocess.Popen[str]:
        start = [sys.executable, "-m", "cifarscale", command, str(self._recipe), "--run-dir", str(self.path)]
        process = subprocess.Popen(
            [*start, "--data", str(self._shards), *options],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=os.environ | {"CUDA_VISIBLE_DEVICES": "", MARK: str(self.path)},
        )
        self._started.append(process)
        return process

    def run(self, *options: str) -> str:
        """What a sweep prints that ends well."""
        process = self.start(*options)
        output, _ = process.communicate(timeout=PATIENCE_S)
        assert process.returncode == 0, output
        return output

    def trials(self) -> list[dict[str, Any]]:
        try:
            trials: list[dict[str, Any]] = json.loads((self.path / "table.json").read_text())["trials"]
        except FileNotFoundError:
            return []
        return trials

    def states(self) -> list[str]:
        return [trial["state"] for trial in self.trials()]

    def result(self, trial: int) -> Path:
        return self.path / "trials" / self.trials()[trial]["folder"] / "result.json"

    def end(self) -> None:
        for process in self._started:
            process.kill()
            process.wait()


@pytest.fixture
def sweep(tmp_path: Path, shards: Path) -> Iterator[Sweep]:
    """A sweep, after which nothing of Ray is left."""
    sweep = Sweep(tmp_path, shards)
    before = plasma()
    yield sweep
    sweep.end()
    wait_until(lambda: not started_for(sweep.path), "processes are left")
    wait_until(lambda: plasma() <= before, "files are left in shared memory")


def started_for(folder: Path) -> set[int]:
    """Processes that a sweep of this test has started, Ray's among them: they inherit its environment."""
    mark = f"{MARK}={folder}".encode()
    found = set()
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if mark in (process / "environ").read_bytes().split(b"\0"):
                found.add(int(process.name))
        except OSError:
            continue
    return found


def plasma() -> set[Path]:
    return set(Path("/dev/shm").glob("plasma*"))


def wait_until(holds: Any, otherwise: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < deadline, otherwise
        time.sleep(0.05)


def process_of(sweep: Sweep) -> int:
    """The process of a trial that has a checkpoint to go on from."""
    found: list[int] = []

    def is_there() -> bool:
        for lease in sweep.path.glob("trials/*/.lease"):
            if list(lease.parent.glob("checkpoints/step-*")) and not (lease.parent / "result.json").exists():
                try:
                    found.append(json.loads(lease.read_text())["pid"])
                except FileNotFoundError:
                    continue
        return bool(found)

    wait_until(is_there, "no trial runs")
    return found[0]


def cifarscale(*arguments: str) -> str:
    command = [sys.executable, "-m", "cifarscale", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=PATIENCE_S).stdout


def test_the_best_of_four_trials_is_a_recipe_that_trains(sweep: Sweep, shards: Path, tmp_path: Path) -> None:
    sweep.write()
    output = sweep.run()
    assert sweep.states() == ["complete"] * 4
    assert "is on the validation split" in output
    for name in ("curves.png", "parallel.png"):
        assert (sweep.path / "plots" / name).is_file()
        assert name in output
    best = load_recipe(str(sweep.path / "best.toml"))
    assert best.data.num_validation == 0
    winner = max(sweep.trials(), key=lambda trial: trial["value"])
    assert best.training.learning_rate == winner["overrides"]["training.learning_rate"]
    trained = cifarscale(
        "train", str(sweep.path / "best.toml"), "--data", str(shards), "--run-dir", str(tmp_path / "best")
    )
    assert "test" in trained
    assert "validation" not in trained
    again = cifarscale("train", str(sweep.result(0).parent / "recipe.toml"), "--data", str(shards))
    assert "is complete" in again
    assert "complete" in cifarscale("sweep-status", str(sweep.path))


def test_a_trial_whose_process_is_killed_is_started_again_from_its_checkpoint(sweep: Sweep) -> None:
    sweep.write(max_steps=300)
    process = sweep.start("--num-trials", "2")
    os.kill(process_of(sweep), signal.SIGKILL)
    output, _ = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, output
    assert sweep.states() == ["complete"] * 2
    assert sorted(trial["starts"] for trial in sweep.trials()) == [1, 2]


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


def command_of(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().split("\0")
    except OSError:
        return []


def is_raylet(pid: int) -> bool:
    return command_of(pid)[0].endswith("/raylet")


def test_a_trial_that_diverges_is_marked_with_its_reason_and_the_others_go_on(sweep: Sweep) -> None:
    sweep.write('"training.learning_rate" = { choice = [1e30, 1e-3, 1e-2] }', searcher="grid")
    output = sweep.run()
    assert sweep.states() == ["failed", "complete", "complete"]
    assert "is not finite" in sweep.trials()[0]["reason"] or "are not finite" in sweep.trials()[0]["reason"]
    assert sweep.trials()[0]["starts"] == 1
    assert "trial 0 failed" in output


def test_a_sweep_whose_trials_all_fail_ends_with_1(sweep: Sweep) -> None:
    sweep.write('"training.learning_rate" = { choice = [1e30] }', searcher="grid")
    process = sweep.start()
    output, _ = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 1, output
    assert "no trial came to a figure" in output


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
    process = sweep.start()
    process_of(sweep)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 75, output
    assert "--resume" in output
    assert "running" not in sweep.states()


def test_a_sweep_whose_time_is_up_is_complete_until_it_gets_more(sweep: Sweep) -> None:
    sweep.write(max_steps=1000)
    output = sweep.run("--set", "time_budget_min=0.2")
    assert "the sweep ended early: time_budget_min = 0.2 is used up" in output
    assert "best    " in output
    assert set(sweep.states()) & {"interrupted", "waiting"}
    steps = [trial["step"] for trial in sweep.trials()]
    assert "ended early" in sweep.run("--set", "time_budget_min=0.2")  # shown, not run
    sweep.run("--resume", "--set", "time_budget_min=0.4")
    assert sum(trial["step"] for trial in sweep.trials()) > sum(steps)


def test_optuna_proposes_values_that_suit_their_conditions(sweep: Sweep) -> None:
    pytest.importorskip("optuna", reason="Optuna is not installed")
    sweep.write(
        '"optimizer.name" = { choice = ["adamw", "sgd"] }\n'
        '"optimizer.nesterov" = { choice = [true, false], when = { "optimizer.name" = "sgd" } }\n' + LEARNING_RATES,
        searcher="optuna",
    )
    sweep.run()
    assert sweep.states() == ["complete"] * 4
    for trial in sweep.trials():
        assert ("optimizer.nesterov" in trial["overrides"]) == (trial["overrides"]["optimizer.name"] == "sgd")

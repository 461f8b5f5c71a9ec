"""The task of examples/autoencoder, a package of its own: all commands know it, and it keeps the promise like ours."""

import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable
from glob import glob
from pathlib import Path
from typing import Any

import pytest
from documents import EXAMPLE, HERE
from processes import run_command
from runs import Run

RECIPE = """
task = "autoencoder"
[data]
num_validation = 100
[model]
width = 6
[training]
max_steps = {steps}
global_batch_size = 16
log_every = 1
checkpoint_every = 5
[evaluation]
every = 10
"""
SWEEP = """
task = "sweep"
base = "{base}"
metric = "validation_error"
mode = "min"
num_trials = 3
[space]
"model.width" = {{ choice = [2, 4, 8] }}
[searcher]
name = "grid"
"""
Command = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def environment(example_task: str) -> dict[str, str]:
    return os.environ | {"PYTHONPATH": example_task, "OMP_NUM_THREADS": "1"}


@pytest.fixture
def call(environment: dict[str, str], tmp_path: Path) -> Command:
    def call(*arguments: object, code: int = 0) -> subprocess.CompletedProcess[str]:
        return run_command(tmp_path, *arguments, code=code, env=environment)

    return call


@pytest.fixture
def recipe(tmp_path: Path) -> Callable[[int], Path]:
    def recipe(steps: int) -> Path:
        (tmp_path / "mine.toml").write_text(RECIPE.format(steps=steps), encoding="utf-8")
        return tmp_path / "mine.toml"

    return recipe


def test_it_trains_to_the_same_bits_on_two_ranks_and_is_shown(
    call: Command, recipe: Callable[[int], Path], shards: Path, tmp_path: Path
) -> None:
    mine = recipe(20)
    done = call("train", mine, "--data", shards, "--run-dir", "runs/one")
    assert "brightness" in done.stderr
    summary, cost, error, *last = done.stdout.splitlines()
    assert "parameters, 20 steps" in summary
    assert "images seen" in cost
    assert float(error.removeprefix("validation error: ")) == pytest.approx(
        Run(tmp_path / "runs/one").result()["validation"]["error"], rel=1e-3
    )
    assert last == ["result  runs/one/result.json", "next    cifarscale report runs/one"]
    call("train", mine, "--data", shards, "--run-dir", "runs/two", "--nproc", 2)
    Run(tmp_path / "runs/one").assert_same_as(Run(tmp_path / "runs/two"))
    assert "error" in call("runs").stdout
    call("report", "runs/one", "runs/two")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert page.index("validation error") < page.index("Reconstruction")
    assert "Size of the code" in page
    assert "model.width" in call("jobs", "keys", "autoencoder").stdout


def test_it_goes_on_after_it_was_killed(
    call: Command, environment: dict[str, str], recipe: Callable[[int], Path], shards: Path, tmp_path: Path
) -> None:
    mine, killed = recipe(400), Run(tmp_path / "killed")
    where: list[Any] = ["train", mine, "--data", shards, "--set", "evaluation.every=0", "--run-dir"]
    command = [sys.executable, "-m", "cifarscale", *map(str, where), str(killed.path)]
    with subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL) as process:
        killed.wait_for_step(20, process.poll)
        process.send_signal(signal.SIGKILL)
    assert not (killed.path / "result.json").exists()
    call(*where, killed.path)
    call(*where, tmp_path / "whole")
    killed.assert_same_as(Run(tmp_path / "whole"))


@pytest.mark.thorough
def test_it_is_swept(call: Command, recipe: Callable[[int], Path], shards: Path, tmp_path: Path) -> None:
    (tmp_path / "sweep.toml").write_text(SWEEP.format(base=recipe(10)), encoding="utf-8")
    done = call("sweep", "sweep.toml", "--data", shards, "--run-dir", "swept")
    assert "validation_error" in done.stdout
    assert len(list((tmp_path / "swept/trials").glob("*/result.json"))) == 3
    call("train", "swept/best.toml", "--data", shards, "--run-dir", "best")


def test_what_it_cannot_do_is_said_in_one_line(
    call: Command, recipe: Callable[[int], Path], shards: Path, tmp_path: Path
) -> None:
    call("train", recipe(1), "--data", shards, "--run-dir", "run")
    for command, what in (
        (("evaluate", "run", "--data", shards), "a classifier's"),
        (("generate", "run", "--out", "a.png"), "a generator's"),
    ):
        done = call(*command, code=1)
        assert done.stderr.strip() == f"error: run is a run of task 'autoencoder', and this needs {what}"


def test_the_commands_of_its_page_run(call: Command, tmp_path: Path) -> None:
    (tmp_path / "examples").symlink_to(EXAMPLE.path.parents[1])
    for _, *arguments in map(shlex.split, EXAMPLE.commands(HERE)):
        call(*(path for argument in arguments for path in sorted(glob(argument, root_dir=tmp_path)) or [argument]))
    assert len(list(tmp_path.glob("runs/autoencoder-*/report.html"))) == 1

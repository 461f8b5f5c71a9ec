"""What `cifarscale new` writes runs as it stands: its own tests, and all commands."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from processes import run_command
from runs import PATIENCE_S, Run

from cifarscale.errors import TRUST_VARIABLE

SHORT = ("--set", "training.max_steps=4", "--set", "training.global_batch_size=16", "--set", "evaluation.every=0")
Command = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def cifarscale(shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    """Runs `cifarscale` in the test's folder, for a user of this test's own."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.delenv(TRUST_VARIABLE, raising=False)
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards/synthetic").symlink_to(shards)

    def cifarscale(*arguments: object, code: int = 0) -> subprocess.CompletedProcess[str]:
        return run_command(tmp_path, *arguments, code=code)

    return cifarscale


def test_its_tests_pass(cifarscale: Command, tmp_path: Path) -> None:
    for kind in ("network", "task", "dataset"):
        cifarscale("new", kind, f"own_{kind}")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "."],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert "3 passed" in done.stdout


def test_a_task_in_a_file_is_one_like_the_others_and_its_code_is_part_of_the_run(
    cifarscale: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cifarscale("new", "task", "own")
    cifarscale("train", "own.toml", *SHORT, "--run-dir", "runs/mine")
    cifarscale("train", "own.toml", *SHORT, "--run-dir", "runs/two", "--nproc", 2)
    Run(tmp_path / "runs/mine").assert_same_as(Run(tmp_path / "runs/two"))
    (tmp_path / "own.py").unlink()
    assert "error" in cifarscale("runs").stdout
    cifarscale("report", "runs/mine")
    assert "runs/mine is complete" in cifarscale("train", "runs/mine/recipe.toml").stdout
    refused = cifarscale("export", "runs/mine", "--to", "own.onnx", code=1).stderr
    assert "task 'own' does not say what its network takes and gives" in refused
    assert "this needs a classifier's" in cifarscale("evaluate", "runs/mine", code=1).stderr
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "another user"))
    assert "mine" in cifarscale("runs").stdout
    cifarscale("report", "runs/mine")
    (tmp_path / "runs/mine/result.json").unlink()
    for command in (("train", "runs/mine/recipe.toml"), ("evaluate", "runs/mine")):
        assert "own.py, code that you have not trained" in cifarscale(*command, code=1).stderr
    (tmp_path / "other.toml").write_text('task = "owm"\nmodules = ["runs/mine/code/own.py"]\n', encoding="utf-8")
    said = cifarscale("train", "other.toml", code=1).stderr
    assert "task = 'owm' is not valid, did you mean 'own'?; a recipe needs one of: " in said

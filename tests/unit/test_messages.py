"""What people read: times, refusals and hints."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from cifarscale.checks.doctor import _first_error
from cifarscale.cli.main import main
from cifarscale.config.load import load_training_recipe
from cifarscale.errors import CifarscaleError, ConfigError, typed
from cifarscale.evaluation import distance
from cifarscale.log import console
from cifarscale.sweeps.view import SweepView
from cifarscale.tracking.progress import TrainingProgress


@pytest.mark.parametrize(("rate", "expected"), [(0.0, ""), (100.0, "ETA 00:00:09"), (1 / 3600, "ETA 37-12:00:00")])
def test_the_time_that_is_left_counts_days_and_is_not_guessed(rate: float, expected: str) -> None:
    with console.capture() as said, TrainingProgress("x", 1000, ("loss",)) as progress:
        progress.trained(100, {"images_per_second": rate, "images": 100.0, "loss": 1.0})
    line = said.get().strip()
    assert line.endswith(expected or "loss 1.000")


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("augmentation.flip=True", "write true"),
        ("optimizer.betas=(0.9, 0.99)", "write [0.9, 0.99]"),
        ("training.max_steps=99999999999999999999999", "training.max_steps = 99999999999999999999999: whole numbers"),
    ],
)
def test_what_is_written_as_in_python_is_answered_in_toml(override: str, expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_training_recipe("cnn", (override,))
    assert expected in str(caught.value)


def test_a_network_that_no_memory_can_hold_is_one_line(shards: Path, tmp_path: Path) -> None:
    arguments = ["train", "demo", "--data", str(shards), "--run-dir", str(tmp_path), "--set", "model.width=100000"]
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 1
    assert "does not suffice (" in done.stderr.splitlines()[-1]
    assert "Take a smaller network or training.global_batch_size" in done.stderr.splitlines()[-1]


@pytest.mark.parametrize(("name", "expected"), [("x.jpg", "Name a .png"), ("used", "holds 1 files already")])
def test_images_go_into_a_new_folder_or_a_png(tmp_path: Path, name: str, expected: str) -> None:
    """Found before a network is opened, so an empty folder will do for the run."""
    (tmp_path / "used").mkdir()
    (tmp_path / "used/old.png").touch()
    (tmp_path / "run").mkdir()
    done = CliRunner().invoke(main, ["generate", str(tmp_path / "run"), "--out", str(tmp_path / name)])
    assert done.exit_code == 1, done.output
    assert expected in done.stderr


def test_a_cache_that_cannot_be_written_is_a_warning(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    said: list[str] = []
    monkeypatch.setattr(distance, "_save", full)
    monkeypatch.setattr(distance.log, "warning", lambda text, *values: said.append(text % values))
    distance._keep(tmp_path / "x.npz", None, "key")  # type: ignore[arg-type]
    assert said == ["the statistics are not kept for the next time: [Errno 28] No space left on device"]


def test_the_cache_does_not_grow_without_limit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(distance, "CACHE_BYTES", 250)
    monkeypatch.setattr(distance, "_save", lambda path, *_: path.write_bytes(bytes(100)))
    for i in range(4):
        distance._keep(tmp_path / f"{i}.npz", None, "key")  # type: ignore[arg-type]
        os.utime(tmp_path / f"{i}.npz", (i, i))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["2.npz", "3.npz"]


def test_output_that_takes_only_ascii_is_no_reason_to_fail() -> None:
    command = [sys.executable, "-m", "cifarscale", "jobs", "list"]
    done = subprocess.run(command, env=os.environ | {"PYTHONIOENCODING": "ascii"}, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    assert b"\\u2013" in done.stdout


def invoke(*arguments: object) -> str:
    return CliRunner().invoke(main, list(map(str, arguments))).output


def test_a_run_that_failed_is_shown_as_failed_with_its_error_until_it_goes_on(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", "/nowhere")
    steps = ("training.max_steps=6", "training.log_every=4", "evaluation.every=0")
    sets = [part for value in steps for part in ("--set", value)]
    where = ("--data", shards, "--run-dir", "runs/r")
    monkeypatch.setattr("cifarscale.training.engine.Engine._save", _no_disk)
    invoke("train", "demo", *sets, *where)
    shown = " ".join(invoke("runs").split())
    assert "failed" in shown
    assert "r: cannot write here" in shown
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    invoke("train", "demo", *sets, *where)
    shown = " ".join(invoke("runs").split())
    assert "complete" in shown
    assert "6/6" in shown
    assert "cannot write" not in shown


def _no_disk(*_: object) -> None:
    raise CifarscaleError("cannot write here")


def test_a_sweep_of_which_nothing_came_says_so() -> None:
    assert SweepView().outcome({"metric": "top1", "trials": 3, "best": None}) == "no trial of 3 produced a result"


@pytest.mark.parametrize(
    ("stem", "name"), [("my run #3 (new)", "my run -3 -new-"), ("it's", "it-s"), ("(a)", "a-"), ("#", "recipe")]
)
def test_a_recipe_may_lie_in_a_file_of_any_name(stem: str, name: str, tmp_path: Path) -> None:
    path = tmp_path / f"{stem}.toml"
    path.write_text('task = "classifier"')
    assert load_training_recipe(str(path)).name == name


def test_commands_to_type_are_quoted(tmp_path: Path) -> None:
    (tmp_path / "my runs").mkdir()
    told = invoke("evaluate", tmp_path / "my runs")
    assert typed(tmp_path / "my runs") == f"'{tmp_path}/my runs'"
    assert "is not a run folder" in told


def test_the_error_of_a_job_is_not_a_line_of_its_source(tmp_path: Path) -> None:
    log = tmp_path / "1_0_log.out"
    log.write_text(
        'Traceback (most recent call last):\n  File "x.py", line 3, in f\n    raise RuntimeError(\n'
        "RuntimeError: no Python here\nsrun: error: n1: task 0: Exited with exit code 1\n"
    )
    assert _first_error([log]) == "RuntimeError: no Python here"
    log.write_text("module: command not found\nbash: python9: No such file or directory\nlast\n")
    assert _first_error([log]) == "module: command not found"
    log.write_text("one\nlast\n")
    assert _first_error([log]) == "last"


def test_a_reader_that_goes_away_does_not_end_a_training(shards: Path, tmp_path: Path) -> None:
    where = (
        "--data",
        shards,
        "--run-dir",
        tmp_path / "run",
        "--set",
        "training.max_steps=200",
        "--set",
        "evaluation.every=0",
    )
    command = [sys.executable, "-m", "cifarscale", "train", "demo", *map(str, where), "--set", "training.log_every=1"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert process.stdout is not None
    while "step 1/200" not in process.stdout.readline():
        assert process.poll() is None
    process.stdout.close()
    assert process.wait(300) == 0
    assert (tmp_path / "run/result.json").exists()

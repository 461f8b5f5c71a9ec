"""What people read: times, refusals and hints."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from cifarscale.cli.main import main
from cifarscale.config.load import load_recipe
from cifarscale.errors import ConfigError
from cifarscale.evaluation import distance
from cifarscale.log import console
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
        load_recipe("cnn", (override,))
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

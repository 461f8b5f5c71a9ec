"""`cifarscale sync`: offline runs reach the server once, and whatever is in its way is one line."""

import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from processes import descendants, wait_until_gone
from wandb_server import KEY, WandbServer

from cifarscale.runs.lease import lease
from cifarscale.runs.run_folder import RunFolder

Function = Callable[..., Any]


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty folder to work in."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def runs(train: Function) -> list[Path]:
    """An offline run, and one that is a trial of a sweep."""
    trial = Path("runs/swept/trials/one")
    trial.parent.mkdir(parents=True)
    (trial.parents[1] / "recipe.toml").touch()
    return [train(folder, "tracking.wandb=offline").path for folder in (Path("runs/alone"), trial)]


def test_all_runs_and_trials_are_uploaded_once(runs: list[Path], server: WandbServer, cifarscale: Function) -> None:
    first = cifarscale("sync")
    assert first.returncode == 0, first.stderr
    assert sorted(first.stdout.splitlines()) == sorted(f"{run}  uploaded" for run in runs)
    ids = {(run / "wandb" / "id").read_text().strip() for run in runs}
    assert server.runs.keys() == ids
    for uploaded in server.runs.values():
        assert [row["step"] for row in uploaded.rows] == [*range(2, 21, 2)]
        assert uploaded.exit_code == 0
    for uploaded in server.runs.values():
        uploaded.history.clear()
    assert {path.name for path in Path().iterdir()} == {"runs"}
    again = cifarscale("sync")
    assert again.returncode == 0
    assert all("already" in line for line in again.stdout.splitlines())
    assert not any(uploaded.history for uploaded in server.runs.values())


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_sync_that_was_cut_short_leaves_nothing_running_and_is_done_again(
    signum: signal.Signals, runs: list[Path], server: WandbServer, start: Function, cifarscale: Function
) -> None:
    server.illness = "takes no uploads"
    process = start("sync", runs[0])
    with pytest.raises(subprocess.TimeoutExpired):
        process.communicate(timeout=6)
    uploading = descendants(process.pid)
    assert uploading
    process.send_signal(signum)
    process.communicate(timeout=120)
    wait_until_gone(uploading)
    server.illness = ""
    assert cifarscale("sync", runs[0]).stdout == f"{runs[0]}  uploaded\n"
    (uploaded,) = server.runs.values()
    assert [row["step"] for row in uploaded.rows] == [*range(2, 21, 2)]


def test_a_run_that_is_still_written_waits(runs: list[Path], server: WandbServer, cifarscale: Function) -> None:
    with lease(runs[0] / ".lease", RunFolder(runs[0]).refusal):
        ended = cifarscale("sync", runs[0])
    assert ended.returncode == 1
    assert "is being written" in ended.stderr
    assert not server.runs


def test_without_a_key_it_is_one_line(runs: list[Path], cifarscale: Function) -> None:
    ended = cifarscale("sync")
    assert ended.returncode == 1
    assert "wandb login" in ended.stderr
    assert len(ended.stderr.splitlines()) == 1


def test_without_a_server_it_is_one_line(
    runs: list[Path], cifarscale: Function, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    ended = cifarscale("sync")
    assert ended.returncode == 1
    assert "does not answer" in ended.stderr
    assert len(ended.stderr.splitlines()) == 1


def test_a_run_that_is_named_is_uploaded_also_if_nobody_told_of_it_before(
    cifarscale: Function, train: Function, server: WandbServer
) -> None:
    train(Path("runs/untracked"))
    assert cifarscale("sync", "runs/untracked").stdout == "runs/untracked  uploaded\n"
    (uploaded,) = server.runs.values()
    assert [row["step"] for row in uploaded.rows] == [*range(2, 21, 2)]
    assert uploaded.exit_code == 0


def test_without_offline_runs_it_is_one_line(cifarscale: Function, train: Function) -> None:
    train(Path("runs/untracked"))
    ended = cifarscale("sync")
    assert ended.returncode == 1
    assert "nothing to upload" in ended.stderr
    assert len(ended.stderr.splitlines()) == 1

"""A lease has one holder at a time, and none for ever."""

import errno
import json
import multiprocessing
import os
import socket
import subprocess
import sys
import time
from multiprocessing.synchronize import Barrier
from pathlib import Path

import pytest

from cifarscale.errors import CifarscaleError, RunError
from cifarscale.runs import lease as lease_module
from cifarscale.runs.lease import EXPIRES_AFTER_S, TOUCHED_EVERY_S, lease

LONG_AGO_S = EXPIRES_AFTER_S + 60
NUM_TAKERS, NUM_ROUNDS = 4, 25


def refusal(holder: str) -> RunError:
    return RunError(f"held by {holder}")


def leave_lease(path: Path, host: str, pid: int, age_s: float = 0) -> None:
    """Puts the lease of another process there, last touched `age_s` ago."""
    path.write_text(json.dumps({"host": host, "pid": pid}))
    touched = time.time() - age_s
    os.utime(path, (touched, touched))


def dead_process() -> int:
    """The number of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "folder" / ".lease"


def test_the_holder_excludes_others_by_its_name_and_then_releases(path: Path) -> None:
    with lease(path, refusal):
        holder = f"process {os.getpid()} on {socket.gethostname()}"
        with pytest.raises(RunError, match=f"^held by {holder}$"), lease(path, refusal):
            pass
        assert path.exists()
    assert not list(path.parent.iterdir())
    with lease(path, refusal):
        pass


def test_it_works_where_the_file_system_has_no_hard_links(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    with lease(path, refusal):
        with pytest.raises(RunError, match="held by process"), lease(path, refusal):
            pass
        assert [each.name for each in path.parent.iterdir()] == [path.name]
    assert not list(path.parent.iterdir())


def test_an_error_inside_releases_the_lease(path: Path) -> None:
    with pytest.raises(ZeroDivisionError), lease(path, refusal):
        raise ZeroDivisionError
    assert not list(path.parent.iterdir())


def test_a_refused_taker_leaves_nothing_behind(path: Path) -> None:
    with lease(path, refusal):
        with pytest.raises(RunError), lease(path, refusal):
            pass
        assert list(path.parent.iterdir()) == [path]


def test_a_dead_process_on_this_host_holds_nothing(path: Path) -> None:
    path.parent.mkdir()
    leave_lease(path, socket.gethostname(), dead_process())
    with lease(path, refusal):
        assert json.loads(path.read_text())["pid"] == os.getpid()
    assert not list(path.parent.iterdir())


def test_a_dead_process_that_its_parent_has_not_seen_holds_nothing(path: Path) -> None:
    path.parent.mkdir()
    process = subprocess.Popen([sys.executable, "-c", ""], stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.read()  # ends with the process, which nobody has waited for
    deadline = time.monotonic() + 10
    while Path(f"/proc/{process.pid}/stat").read_text().split()[2] != "Z" and time.monotonic() < deadline:
        time.sleep(0.01)
    leave_lease(path, socket.gethostname(), process.pid)
    with lease(path, refusal):
        pass
    process.wait()


def test_another_process_of_the_same_number_holds_nothing(path: Path) -> None:
    path.parent.mkdir()
    path.write_text(json.dumps({"host": socket.gethostname(), "pid": os.getppid(), "started": "0"}))
    with lease(path, refusal):
        pass


def test_a_living_process_on_this_host_is_respected(path: Path) -> None:
    path.parent.mkdir()
    leave_lease(path, socket.gethostname(), os.getppid())
    with pytest.raises(RunError, match=f"process {os.getppid()} on"), lease(path, refusal):
        pass


def test_a_lease_of_another_host_is_respected_while_it_is_touched(path: Path) -> None:
    """Whatever a process of that number does here."""
    path.parent.mkdir()
    leave_lease(path, "elsewhere", dead_process(), age_s=2 * TOUCHED_EVERY_S)
    with pytest.raises(RunError, match=r"on elsewhere$"), lease(path, refusal):
        pass
    assert json.loads(path.read_text())["host"] == "elsewhere"


@pytest.mark.parametrize("age_s", [LONG_AGO_S, -LONG_AGO_S], ids=["of-long-ago", "of-the-future"])
@pytest.mark.parametrize("host", ["elsewhere", socket.gethostname()])
def test_an_expired_lease_is_taken_over(path: Path, host: str, age_s: float) -> None:
    path.parent.mkdir()
    leave_lease(path, host, os.getppid(), age_s)
    with lease(path, refusal):
        assert json.loads(path.read_text())["host"] == socket.gethostname()
    assert not list(path.parent.iterdir())


@pytest.mark.parametrize(("age_s", "taken"), [(0, False), (LONG_AGO_S, True)])
def test_a_lease_that_cannot_be_read_expires_too(path: Path, age_s: float, taken: bool) -> None:
    path.parent.mkdir()
    leave_lease(path, "", 0, age_s)
    os.truncate(path, 0)
    os.utime(path, (time.time() - age_s,) * 2)
    if taken:
        with lease(path, refusal):
            pass
    else:
        with pytest.raises(RunError, match="an unknown process"), lease(path, refusal):
            pass


def test_a_holder_touches_its_lease(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease_module, "TOUCHED_EVERY_S", 0.01)
    with lease(path, refusal):
        os.utime(path, (0, 0))
        while path.stat().st_mtime == 0:
            time.sleep(0.01)


def test_a_lease_taken_over_in_the_meantime_is_respected(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between our finding it expired and removing it, another process takes it over."""
    path.parent.mkdir()
    leave_lease(path, "elsewhere", 1, age_s=LONG_AGO_S)
    look, looks = lease_module.living_holder, []

    def look_and_be_overtaken(path: Path) -> str:
        looks.append(holder := look(path))
        if len(looks) == 1:
            path.unlink()
            leave_lease(path, "faster", 1)
        return holder

    monkeypatch.setattr(lease_module, "living_holder", look_and_be_overtaken)
    with pytest.raises(RunError, match=r"on faster$"), lease(path, refusal):
        pass
    assert looks[0] == ""
    assert json.loads(path.read_text())["host"] == "faster"


def test_of_many_takers_of_an_expired_lease_one_wins(path: Path) -> None:
    path.parent.mkdir()
    context = multiprocessing.get_context("fork")
    barrier, wins = context.Barrier(NUM_TAKERS), context.SimpleQueue()
    takers = [context.Process(target=_take, args=(path, rank, barrier, wins)) for rank in range(NUM_TAKERS)]
    for taker in takers:
        taker.start()
    for taker in takers:
        taker.join()
    assert [taker.exitcode for taker in takers] == [0] * NUM_TAKERS
    won = sorted(wins.get() for _ in range(NUM_ROUNDS))
    assert won == list(range(NUM_ROUNDS))
    assert wins.empty()


def _take(path: Path, rank: int, barrier: Barrier, wins: "multiprocessing.SimpleQueue[int]") -> None:
    """In each round all try to take one expired lease at the same time, and none lets go before all have tried."""
    for number in range(NUM_ROUNDS):
        if rank == 0:
            leave_lease(path, "elsewhere", 1, age_s=LONG_AGO_S)
        barrier.wait(60)
        try:
            with lease(path, refusal):
                wins.put(number)
                barrier.wait(60)
        except RunError:
            barrier.wait(60)
        barrier.wait(60)


def test_a_folder_that_cannot_be_written_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(CifarscaleError, match=r"^cannot write .*file") as caught,
        lease(tmp_path / "file/.lease", refusal),
    ):
        pass
    assert "\n" not in str(caught.value)

"""Checkpoints: the newest whole one wins, and nothing that goes wrong harms those that are there."""

import logging
import os
import pickle
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch

from cifarscale.errors import CheckpointError, CifarscaleError
from cifarscale.runs.checkpoint import (
    load_checkpoint,
    newest_checkpoint,
    save_checkpoint,
)
from cifarscale.runs.checkpoint_files import checkpoint_files, checkpoint_step
from cifarscale.runs.files import write_atomically, write_json_atomically

State = dict[str, Any]


@pytest.fixture
def warnings(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> pytest.LogCaptureFixture:
    """What our logger says, also where a command has configured it to keep its records to itself."""
    monkeypatch.setattr(logging.getLogger("cifarscale"), "propagate", True)
    return caplog


def state(step: int) -> State:
    return {"step": step, "networks": {"a": torch.full((100,), float(step))}, "window": {"loss": [0.5]}, "none": None}


def save(folder: Path, *steps: int, keep: int = 10) -> list[Path]:
    return [save_checkpoint(folder, step, state(step), keep) for step in steps]


def flip_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def empty(path: Path) -> None:
    os.truncate(path, 0)


def test_what_was_saved_is_loaded(tmp_path: Path) -> None:
    (path,) = save(tmp_path / "new" / "checkpoints", 7)
    loaded = load_checkpoint(path)
    assert torch.equal(loaded["networks"]["a"], state(7)["networks"]["a"])
    assert (loaded["step"], loaded["window"], loaded["none"]) == (7, {"loss": [0.5]}, None)
    assert checkpoint_step(path) == 7


def test_the_newest_wins_whatever_the_order_of_writing(tmp_path: Path) -> None:
    paths = save(tmp_path, 5, 100_000, 20)
    assert newest_checkpoint(tmp_path) == paths[1]


def test_the_same_state_is_the_same_file(tmp_path: Path) -> None:
    assert save(tmp_path, 3) == save(tmp_path, 3)


@pytest.mark.parametrize("damage", [flip_a_byte, truncate, empty])
def test_a_damaged_newest_is_passed_over_with_a_warning(
    damage: Any, tmp_path: Path, warnings: pytest.LogCaptureFixture
) -> None:
    good, bad = save(tmp_path, 1, 2)
    damage(bad)
    assert newest_checkpoint(tmp_path) == good
    assert f"{tmp_path}: damaged: {bad.name}. Taken is the one before, of step 1" in warnings.text


@pytest.mark.parametrize("damage", [flip_a_byte, truncate, empty])
def test_none_is_left_when_all_are_damaged(damage: Any, tmp_path: Path, warnings: pytest.LogCaptureFixture) -> None:
    for path in save(tmp_path, 1, 2):
        damage(path)
    assert newest_checkpoint(tmp_path) is None
    assert "all checkpoints are damaged" in warnings.text
    assert checkpoint_files(tmp_path)


def test_a_damaged_one_and_what_a_killed_process_left_go_with_the_next_that_is_written(tmp_path: Path) -> None:
    good, bad = save(tmp_path, 1, 9, keep=2)
    flip_a_byte(bad)
    (tmp_path / ".step-00000005.0123456789ab.pt.1.tmp").touch()
    (new,) = save(tmp_path, 5, keep=2)
    assert sorted(tmp_path.iterdir()) == [good, new]


def test_there_is_none_in_a_folder_that_is_empty_or_not_there(tmp_path: Path) -> None:
    assert newest_checkpoint(tmp_path) is None
    assert newest_checkpoint(tmp_path / "nowhere") is None


@pytest.mark.parametrize("keep", [1, 3])
def test_as_many_are_kept_as_asked_for_and_nothing_else_is_left(keep: int, tmp_path: Path) -> None:
    paths = save(tmp_path, 1, 2, 3, 4, keep=keep)
    assert sorted(tmp_path.iterdir()) == paths[-keep:]


def test_strange_files_are_neither_taken_nor_removed(tmp_path: Path) -> None:
    strangers = ["step-00000009.pt", "step-9.0123456789ab.pt", "notes.txt"]
    for name in strangers:
        (tmp_path / name).write_bytes(b"")
    *_, newest = save(tmp_path, 1, 2, keep=1)
    assert newest_checkpoint(tmp_path) == newest
    assert {path.name for path in tmp_path.iterdir()} == {*strangers, newest.name}


class Malicious:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self._path,)


@pytest.mark.parametrize("write", [torch.save, lambda value, path: path.write_bytes(pickle.dumps(value, 2))])
def test_a_checkpoint_with_code_in_it_is_refused_and_not_executed(write: Any, tmp_path: Path) -> None:
    path, proof = tmp_path / "step-00000001.000000000000.pt", tmp_path / "executed"
    write({"step": 1, "networks": Malicious(proof)}, path)
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not proof.exists()


def test_a_checkpoint_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="nowhere"):
        load_checkpoint(tmp_path / "nowhere")


def test_a_folder_that_cannot_be_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(CifarscaleError, match=r"cannot write .*file.*: Not a directory\.") as caught:
        save(tmp_path / "file" / "checkpoints", 1)
    assert "\n" not in str(caught.value)
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.skipif(sys.platform == "win32", reason="needs limits on the size of files")
def test_a_full_disk_leaves_the_old_checkpoints_and_is_one_clear_line(tmp_path: Path) -> None:
    before = save(tmp_path, 1, 2)
    program = """
        import resource, sys
        from pathlib import Path
        import torch
        from cifarscale.runs.checkpoint import save_checkpoint
        from cifarscale.errors import CifarscaleError
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
        try:
            save_checkpoint(Path(sys.argv[1]), 3, {"networks": torch.zeros(100_000)}, 1)
        except CifarscaleError as error:
            print(error)
    """
    command = [sys.executable, "-c", textwrap.dedent(program), str(tmp_path)]
    ended = subprocess.run(command, capture_output=True, text=True, check=True)
    assert ended.stdout.startswith(f"cannot write {tmp_path}")
    assert "File too large" in ended.stdout
    assert ended.stdout.count("\n") == 1
    assert sorted(tmp_path.iterdir()) == before
    assert newest_checkpoint(tmp_path) == before[-1]


def test_a_write_that_fails_halfway_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_atomically(path, lambda file: file.write(b"old"))

    def fail(file: Any) -> None:
        file.write(b"new")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_atomically(path, fail)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_json_with_a_number_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        write_json_atomically(tmp_path / "a.json", {"loss": float("nan")})
    assert not list(tmp_path.iterdir())

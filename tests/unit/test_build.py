"""Building a folder of shards: once, whole, by one process at a time, and never at the cost of what was there."""

import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from cifarscale.data.build import build_shards, locate_shards
from cifarscale.data.manifest import MANIFEST_NAME, Manifest
from cifarscale.data.shards import find_damage, write_shards
from cifarscale.data.source import Source
from cifarscale.data.synthetic import synthetic_source
from cifarscale.errors import CifarscaleError, DataError

SMALL = """
import resource, sys
from cifarscale.cli.main import main
from cifarscale.data import shards, synthetic
whole = synthetic.synthetic_source
synthetic.synthetic_source = lambda: whole(200, 100)
"""
"""The program with a smaller drawn set; what follows runs a command."""

FULL_DISK = """
limit, *arguments = sys.argv[1:]
resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit), int(limit)))  # no file grows beyond it
main(arguments)
"""

PAUSED = """
write = shards.write_shards
def paused(source, folder, num_shards, advance, drawn_by):
    def pause(num_samples):
        print("paused", flush=True)
        sys.stdin.readline()
    return write(source, folder, num_shards, pause, drawn_by)
shards.write_shards = paused
main(sys.argv[1:])
"""
"""Writes a shard for each line of its input, and says so."""


@pytest.fixture(autouse=True)
def _small_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cifarscale.data.synthetic.synthetic_source", partial(synthetic_source, 200, 100))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where to build; its parent exists and is empty."""
    return tmp_path / "sets" / "a set, größer"


@pytest.fixture
def built(folder: Path) -> Path:
    build_shards("synthetic", folder, 4)
    return folder


def is_whole(folder: Path, num_shards: int = 4) -> bool:
    manifest = Manifest.load(folder)
    return not find_damage(folder, manifest) and len(manifest.split("train").shards) == num_shards


def stands_alone(folder: Path) -> bool:
    """Whether nothing but the folder is left of building it."""
    return list(folder.parent.iterdir()) == [folder]


def times(folder: Path) -> dict[str, int]:
    """When each file was written: a build that was not needed leaves them alone."""
    return {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}


def run(program: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", SMALL + program, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


@contextmanager
def paused_build(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that has written the first of its four shards and goes on when its input ends."""
    command = [sys.executable, "-c", SMALL + PAUSED, "shards", "build", "--data", "synthetic", "--num-shards", "4"]
    command += ["--out", str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "paused\n"
            yield process
        finally:
            process.kill()


def test_a_build_is_whole_and_leaves_nothing_else_behind(folder: Path) -> None:
    manifest = build_shards("synthetic", folder, 4)
    assert manifest == Manifest.load(folder)
    assert is_whole(folder)
    assert stands_alone(folder)


def test_a_second_build_finds_the_first(built: Path) -> None:
    before = times(built)
    assert build_shards("synthetic", built, 4) == Manifest.load(built)
    assert times(built) == before
    assert stands_alone(built)


def test_another_number_of_shards_is_refused(built: Path) -> None:
    with pytest.raises(DataError, match=r"holds synthetic in 4 training shards, not synthetic in 5; .*--out.*--force"):
        build_shards("synthetic", built, 5)
    assert is_whole(built)


def test_another_set_is_refused(built: Path) -> None:
    with pytest.raises(DataError, match=r"holds synthetic in 4 training shards, not cifar100 in 4; .*--out.*--force"):
        build_shards("cifar100", built, 4)
    assert is_whole(built)


def test_a_folder_that_holds_something_else_is_refused(folder: Path) -> None:
    folder.mkdir(parents=True)
    (folder / "thesis.tex").write_text("")
    with pytest.raises(DataError, match=r"exists and is not a folder of shards; .*--out.*--force"):
        build_shards("synthetic", folder, 4)
    assert [path.name for path in folder.iterdir()] == ["thesis.tex"]


def test_damage_is_told_and_not_repaired_unasked(built: Path) -> None:
    names = [entry.name for entry in Manifest.load(built).split("train").shards]
    (built / names[0]).unlink()
    with pytest.raises(DataError, match=rf"{names[0]} is missing\. Run: .*--force with its --data$"):
        build_shards("synthetic", built, 4)
    (built / names[1]).unlink()
    with pytest.raises(DataError, match=r"\(1 more\)$"):
        build_shards("synthetic", built, 4)


def test_force_replaces_another_build(built: Path) -> None:
    build_shards("synthetic", built, 5, force=True)
    assert is_whole(built, 5)
    assert stands_alone(built)


def test_force_replaces_damaged_shards(built: Path) -> None:
    fingerprint = Manifest.load(built).fingerprint
    shutil.rmtree(built)
    built.mkdir()
    (built / MANIFEST_NAME).write_text("{")
    assert build_shards("synthetic", built, 4, force=True).fingerprint == fingerprint
    assert is_whole(built)


@pytest.mark.parametrize("force", [False, True])
def test_a_file_in_the_way_is_refused(folder: Path, force: bool) -> None:
    folder.parent.mkdir()
    folder.write_text("precious")
    with pytest.raises(DataError, match="is not a folder; name another with --out"):
        build_shards("synthetic", folder, 4, force=force)
    assert folder.read_text() == "precious"
    assert stands_alone(folder)


def test_a_link_stays_and_what_it_points_to_is_built_and_replaced(folder: Path, tmp_path: Path) -> None:
    folder.parent.mkdir()
    folder.symlink_to(tmp_path / "large disk" / "set")
    for num_shards in (4, 5, 6):
        build_shards("synthetic", folder, num_shards, force=True)
        assert is_whole(folder, num_shards)
        assert folder.is_symlink()
        assert stands_alone(folder)
        assert stands_alone(folder.resolve())


def test_shards_of_a_small_set_are_few_enough_to_hold_more_than_an_image(folder: Path, built: Path) -> None:
    assert len(build_shards("synthetic", folder.with_name("default")).split("train").shards) == 200 // 16
    assert len(build_shards("synthetic", built).split("train").shards) == 4  # what is there is taken as it is


@pytest.mark.parametrize("num_shards", [-1, 0, 201])
def test_a_number_of_shards_out_of_range_is_refused(folder: Path, num_shards: int) -> None:
    with pytest.raises(DataError, match=f"^--num-shards {num_shards} is not between 1 and 200, the number of"):
        build_shards("synthetic", folder, num_shards)
    assert not list(folder.parent.iterdir())


def test_a_source_for_the_drawn_set_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="--source has no effect with --data synthetic"):
        build_shards("synthetic", folder, 4, source=tmp_path)
    assert not folder.parent.exists()


def test_a_place_that_cannot_be_written_is_one_clear_line(tmp_path: Path) -> None:
    """Below a regular file: that stops an administrator as well."""
    (tmp_path / "file").write_text("")
    with pytest.raises(CifarscaleError, match=r"^cannot write .*name a folder that you may write to") as caught:
        build_shards("synthetic", tmp_path / "file" / "set", 4)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("num_shards", "limit"), [(2, 100_000), (200, 15_000)], ids=["shard", "manifest"])
def test_a_full_disk_is_one_clear_line_and_leaves_nothing(folder: Path, num_shards: int, limit: int) -> None:
    arguments = ["shards", "build", "--data", "synthetic", "--num-shards", num_shards, "--out", folder]
    process = run(FULL_DISK, limit, *arguments)
    assert process.returncode == 1
    assert process.stderr.startswith(f"error: cannot write {folder.parent}")
    assert "File too large. Free some space" in process.stderr
    assert process.stderr.count("\n") == 1
    assert not list(folder.parent.iterdir())


def test_a_full_disk_leaves_the_shards_that_were_to_be_replaced(built: Path) -> None:
    arguments = ["shards", "build", "--data", "synthetic", "--num-shards", 2, "--out", built, "--force"]
    assert run(FULL_DISK, 100_000, *arguments).returncode == 1
    assert is_whole(built)
    assert stands_alone(built)


def test_of_two_builds_at_once_the_second_is_refused_and_the_first_completes(folder: Path) -> None:
    with paused_build(folder) as first:
        second = run("main(sys.argv[1:])", "shards", "build", "--data", "synthetic", "--out", folder)
        assert second.returncode == 1
        assert second.stderr.startswith(f"error: another build is writing {folder} (process {first.pid} on ")
        assert second.stderr.count("\n") == 1
        assert not folder.exists()
        first.communicate("", timeout=60)
        assert first.returncode == 0
    assert is_whole(folder)
    assert stands_alone(folder)


def test_a_killed_build_is_taken_over(folder: Path) -> None:
    with paused_build(folder) as first:
        first.kill()
        first.wait()
    assert not folder.exists()
    assert list(folder.parent.iterdir())
    build_shards("synthetic", folder, 4)
    assert is_whole(folder)
    assert stands_alone(folder)


def test_a_folder_of_shards_is_found_whatever_set_it_holds(shards: Path) -> None:
    assert locate_shards(str(shards)) == shards


def test_a_set_is_built_where_it_is_missing_and_then_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert locate_shards("synthetic") == Path("shards/synthetic")
    before = times(Path("shards/synthetic"))
    assert locate_shards("synthetic") == Path("shards/synthetic")
    assert times(Path("shards/synthetic")) == before


@pytest.mark.parametrize("data", ["mnist", "", "missing/folder"])
def test_what_is_neither_a_folder_nor_a_set_is_refused(
    data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    message = (
        rf"^--data {data} is neither a folder of shards nor one of: cifar10, cifar100, synthetic\. Of your own images: "
    )
    with pytest.raises(DataError, match=message):
        locate_shards(data)
    assert not list(tmp_path.iterdir())


def test_a_set_whose_folder_holds_something_else_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("shards/synthetic").mkdir(parents=True)
    with pytest.raises(DataError, match=r"^shards/synthetic exists and is not a folder of shards"):
        locate_shards("synthetic")


def test_a_manifest_that_cannot_be_read_is_refused(source: Source, tmp_path: Path) -> None:
    write_shards(source, tmp_path, 4, lambda _: None)
    (tmp_path / MANIFEST_NAME).write_text("{")
    with pytest.raises(DataError, match="is damaged or of another format"):
        build_shards("synthetic", tmp_path, 4)

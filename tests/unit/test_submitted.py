"""Finding the run that is meant: by folder, by name, or by the id of a job."""

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest

from cifarscale.errors import ClusterError, RunError
from cifarscale.slurm import client as slurm
from cifarscale.slurm.submitted import Submitted, find_run, submissions


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a folder of its own, on a machine without SLURM."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(slurm, "output_file", _no_slurm)


def _no_slurm(job_id: str) -> Path | None:
    raise ClusterError("scontrol is not found")


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., Path]:
    """Makes a run folder whose jobs have these ids."""

    def run(where: str, *job_ids: str) -> Path:
        path = tmp_path / where
        path.mkdir(parents=True)
        (path / "recipe.toml").touch()
        if job_ids:
            jobs = [Submitted(job_id, str(path / "slurm"), "gpu", 2, 4, "2026-01-01", []) for job_id in job_ids]
            (path / "slurm").mkdir()
            (path / "slurm/jobs.jsonl").write_text("".join(json.dumps(asdict(job)) + "\n" for job in jobs))
        return path

    return run


def test_a_folder_or_a_name_is_the_run_with_its_newest_job(run: Callable[..., Path]) -> None:
    path = run("runs/cnn-0123", "7", "9")
    for name in (str(path), "runs/cnn-0123", "cnn-0123"):
        found, job = find_run(name)
        assert found.resolve() == path
        assert job == submissions(path)[-1]


def test_a_run_that_was_never_submitted_has_no_job(run: Callable[..., Path]) -> None:
    path = run("runs/cnn-0123")
    assert find_run(str(path)) == (path, None)


def test_of_two_jobs_that_have_had_the_same_number_the_newer_is_meant(run: Callable[..., Path]) -> None:
    for name, when in (("old", "2026-01-01T10:00:00+00:00"), ("new", "2026-02-01T10:00:00+00:00")):
        path = run(f"runs/{name}", "7")
        remembered = path / "slurm/jobs.jsonl"
        about = json.loads(remembered.read_text()) | {"script": f"{name}.sh", "submitted": when}
        remembered.write_text(json.dumps(about) + "\n")
    assert find_run("7")[0].name == "new"


@pytest.mark.parametrize("damage", ["", "\0\0", '{"job_id": "8"}', "[1]", "{"])
def test_a_damaged_line_is_left_out(run: Callable[..., Path], damage: str) -> None:
    path = run("runs/cnn-0123", "7", "9")
    remembered = path / "slurm/jobs.jsonl"
    first, last = remembered.read_text().splitlines()
    remembered.write_text(f"{first}\n{damage}\n{last}\n")
    assert [job.job_id for job in submissions(path)] == ["7", "9"]


def test_a_job_is_found_by_its_id_also_when_it_is_not_the_newest(run: Callable[..., Path]) -> None:
    run("runs/cnn-0123", "7", "9")
    here = run("here", "12_0")
    for job_id, name in (("7", "cnn-0123"), ("9", "cnn-0123"), ("12_0", "here"), ("12", "here")):
        found, job = find_run(job_id)
        assert found.name == name
        assert job is not None
        assert slurm.array_job(job.job_id) == slurm.array_job(job_id)
    assert find_run("12")[0].resolve() == here


def test_a_job_of_another_place_is_found_by_its_log(
    run: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = run("far away/run", "7")
    monkeypatch.setattr(slurm, "output_file", lambda job_id: tmp_path / "far away/run/slurm" / f"{job_id}_0_log.out")
    assert find_run("7")[0] == path


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("nothing", ("'nothing'", "neither", "cifarscale runs")),
        ("", ("''", "neither")),
        ("12-3", ("'12-3'", "neither")),
        ("99", ("job 99", "Name its run folder")),
        ("12", ("array of 2", "12_2, 12_10")),
    ],
)
def test_what_is_neither_is_refused_in_one_line(name: str, words: tuple[str, ...], run: Callable[..., Path]) -> None:
    run("runs/cnn-a", "12_10")
    run("runs/cnn-b", "12_2")
    with pytest.raises(RunError) as caught:
        find_run(name)
    assert all(word in str(caught.value) for word in words)
    assert "\n" not in str(caught.value)

"""What the queue takes, what it knows of a job, and what happens while a part of SLURM is away."""

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from runs import wait_until
from slurm_jobs import Job

from cifarscale.runs.run_folder import RunFolder

pytestmark = pytest.mark.slurm


@pytest.fixture
def held(cluster: Any, tmp_path: Path) -> Iterator[tuple[object, ...]]:
    """Options with which jobs are queued and never start; in no test's way when it is over."""
    profile = tmp_path / "held.toml"
    profile.write_text(
        'partition = "main,urgent"\ngpus_per_node = 0\ntasks_per_node = 2\ncpus_per_task = 1\ntime = "00:10:00"\n'
        "[sbatch]\nhold = true\nexclusive = true\nno-kill = false\n"
    )
    yield ("--profile", profile)
    cluster.run("scancel", "--state=PENDING", "--user=root", check=False)


def test_several_partitions_and_options_without_a_value_are_queued(
    held: tuple[object, ...], submit: Callable[..., Job], recipe: Callable[[int], Path]
) -> None:
    job = submit(recipe(20), *held)
    shown = job.cluster.run("scontrol", "show", "job", job.id).stdout
    assert "Partition=main,urgent" in shown
    assert "OverSubscribe=NO" in shown
    assert "Reason=JobHeldUser" in shown


def test_a_number_that_is_another_jobs_by_now_is_not_taken_for_the_runs_own(
    held: tuple[object, ...],
    submit: Callable[..., Job],
    command: Callable[..., Any],
    recipe: Callable[[int], Path],
    data: Path,
) -> None:
    job = submit(recipe(20), *held)
    remembered = RunFolder(job.run.path).slurm / "jobs.jsonl"
    number, ours = job.id, remembered.read_text()
    remembered.write_text(json.dumps(json.loads(ours) | {"script": ".submission_file_of_long_ago.sh"}) + "\n")
    assert command("cancel", job.run.path).stdout == f"job {number} is unknown to SLURM already\n"
    assert job.state() == "PENDING"
    assert "unknown" in command("status", job.run.path).stdout
    assert f"SLURM does not know job {number} any more" in command("why", job.run.path).stdout
    assert command("logs", job.run.path).returncode == 1
    again = command("submit", recipe(20), "--nodes", 2, "--data", data, "--run-dir", job.run.path, *held)
    assert again.returncode == 0, again.stderr
    remembered.write_text(ours)
    assert "being cancelled" in command("cancel", job.run.path).stdout
    job.cluster.wait_for_state(number, ("CANCELLED",))
    assert command("cancel", job.run.path).stdout == f"job {number} is cancelled already\n"


def test_a_job_for_nodes_that_are_drained_waits_and_it_is_said_why(
    cluster: Any, command: Callable[..., Any], recipe: Callable[[int], Path], data: Path, tmp_path: Path
) -> None:
    cluster.run("scontrol", "update", "nodename=n1,n2", "state=drain", "reason=test")
    try:
        done = command("submit", recipe(20), "--nodes", 2, "--data", data, "--run-dir", "run")
        assert done.returncode == 0, done.stderr
        assert "the job waits: Requested node configuration is not available" in done.stderr
        assert command("cancel", tmp_path / "run").returncode == 0
    finally:
        cluster.run("scontrol", "update", "nodename=n1,n2", "state=resume")
        shown = ("sinfo", "--noheader", "--format=%T")
        wait_until(lambda: set(cluster.run(*shown).stdout.split()) == {"idle"}, "SLURM does not hear from its nodes")


def test_a_database_that_is_away_keeps_nobody_from_working(
    cluster: Any, submit: Callable[..., Job], command: Callable[..., Any], recipe: Callable[[int], Path]
) -> None:
    cluster.kill("slurmdbd")
    try:
        job = submit(recipe(20), "--wait")
        assert job.run.result()["steps"] == 20
        shown = command("status", job.run.path).stdout
        assert "COMPLETED" in shown
        assert command("why", job.run.path).returncode == 0
    finally:
        cluster.start("slurmdbd")


def test_a_refused_array_leaves_no_folders(
    cluster: Any, command: Callable[..., Any], recipe: Callable[[int], Path], data: Path, tmp_path: Path
) -> None:
    """An `sbatch` that refuses what it would have taken when it was asked for advice, before the others of the path."""
    fake = tmp_path / "bin/sbatch"
    fake.parent.mkdir()
    fake.write_text('#!/bin/sh\n[ "$1" = --test-only ] && exit 0\necho "Job violates the limit" >&2\nexit 1\n')
    fake.chmod(0o755)
    path = f"{fake.parent}{os.pathsep}{os.environ['PATH']}"
    done = command("submit", recipe(20), "--data", data, "--array", "seed=1,2,3", PATH=path)
    assert done.returncode == 1
    assert "sbatch refused the job: Job violates the limit" in done.stderr
    assert not list(tmp_path.glob("runs/*"))

"""`cifarscale why` and goodput of jobs on a real SLURM: each is made to end in one way, which must be told."""

import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from runs import Run, planted
from slurm_jobs import ENDED, PATIENCE_S, slurm

from cifarscale.slurm.submitted import submissions

pytestmark = pytest.mark.slurm

TWO_RANKS = Path(__file__).with_name("two_ranks.toml")
Command = Callable[..., subprocess.CompletedProcess[str]]

RECIPE = """
task = "classifier"
[training]
max_steps = 100_000
log_every = 5
checkpoint_every = 20
[evaluation]
every = 0
"""
RAISING = """
import os
if os.environ.get("SLURM_PROCID") == "1":
    from cifarscale.data import in_memory
    in_memory.InMemoryReader.batches = lambda *_: (_ for _ in ()).throw(ValueError("planted"))
"""
NOT_REQUEUED = """
import os, time
if "SLURM_PROCID" in os.environ:
    from cifarscale.slurm import task as slurm_task
    slurm_task.leave_word = lambda: time.sleep(600)
"""


@pytest.fixture
def submit(cluster: Any, command: Command, shards: Path, tmp_path: Path) -> Iterator[Callable[..., str]]:
    """Submits a run that takes very long; what is left of it at the end of the test is cancelled. Returns: its job."""
    (tmp_path / "long.toml").write_text(RECIPE, encoding="utf-8")
    jobs = []

    def submit(run: str, *options: object, **environment: str) -> str:
        done = command("submit", "long.toml", "--data", shards, "--run-dir", run, *options, **environment)
        assert done.returncode == 0, done.stderr
        jobs.append(submissions(tmp_path / run)[-1].job_id)
        return jobs[-1]

    yield submit
    for job in jobs:
        slurm(cluster, "scancel", job)
    for job in jobs:
        cluster.wait_for_state(job, ENDED, 60)


@pytest.fixture
def why(command: Command) -> Callable[[str], str]:
    """What it says, without line breaks."""
    return lambda job_or_run: " ".join(command("why", job_or_run).stdout.split())


def wait_for_step(cluster: Any, tmp_path: Path, job: str, step: int) -> None:
    def ended() -> str | None:
        state = str(cluster.state(job))
        return state if state in ENDED else None

    Run(tmp_path / "run").wait_for_step(step, ended, every_s=0.1)


def test_a_job_that_waits_tells_its_reason_and_one_that_runs_how_far_it_is(
    cluster: Any, submit: Callable[..., str], why: Callable[[str], str], idling: dict[str, str], tmp_path: Path
) -> None:
    profile = tmp_path / "exclusive.toml"
    profile.write_text(f"{TWO_RANKS.read_text()}[sbatch]\nexclusive = true\n")
    first, second = (submit(run, "--nodes", 2, "--profile", profile, **idling) for run in ("run", "other"))
    wait_for_step(cluster, tmp_path, first, 20)
    assert re.match(
        rf"job {first} is running on n\[1-2\] It started at .* It has come to step [\d,]+ of 100,000", why("run")
    )
    found = why(second)
    assert re.match(rf"job {second} is pending \((Resources|Priority)\)", found)
    assert "what to do" in found
    slurm(cluster, "scontrol", "uhold", second)
    assert f"scontrol release {second}" in why("other")
    slurm(cluster, "scancel", second)
    cluster.wait_for_state(second, ENDED, 60)
    assert re.match(rf"job {second} was cancelled by \w+ before it started", why("other"))


def test_a_requeued_job_tells_why_it_waits_and_its_goodput_what_the_restart_took(
    cluster: Any,
    submit: Callable[..., str],
    why: Callable[[str], str],
    command: Command,
    idling: dict[str, str],
    tmp_path: Path,
) -> None:
    job = submit("run", "--nodes", 2, **idling)
    wait_for_step(cluster, tmp_path, job, 20)
    slurm(cluster, "scancel", "--signal=USR2", job)
    cluster.wait_for_state(job, ("PENDING",), 60)
    found = why(job)
    assert "queued again, and SLURM holds such a job until" in found
    step = Run(tmp_path / "run").last_step()
    wait_for_step(cluster, tmp_path, job, step + 10)
    shown = command("status", "run", "--goodput").stdout
    assert "in 2 starts" in shown
    for name in ("queued", "computing", "starting", "lost to restarts", "better request"):
        assert name in shown
    command("cancel", "run")
    cluster.wait_for_state(job, ENDED, 60)
    found = why("run")
    assert re.match(rf"job {job} was cancelled by \w+ It has come to", found)
    assert "the state is saved" in found


def test_the_rank_whose_exception_ended_a_job_is_named_and_comes_first(
    cluster: Any, submit: Callable[..., str], why: Callable[[str], str], command: Command, tmp_path: Path
) -> None:
    job = submit("run", "--nodes", 2, **planted(tmp_path, RAISING))
    cluster.wait_for_state(job, ENDED, PATIENCE_S)
    logs = command("logs", "run").stdout
    assert logs.startswith("rank 1 on n2 ended first:")
    assert "ValueError: planted" in logs
    assert "ValueError: planted" in command("status", "run").stdout
    for name in (job, "run"):
        found = why(name)
        assert found.startswith(f"job {job} failed: rank 1 on n2 died first: ValueError: planted")
        assert "| ValueError: planted" in found
        assert "cifarscale submit long.toml" in found


@pytest.mark.thorough
def test_a_time_limit_that_came_before_the_job_was_queued_again_is_told(
    cluster: Any, submit: Callable[..., str], why: Callable[[str], str], tmp_path: Path
) -> None:
    job = submit("run", "--nodes", 1, **planted(tmp_path, NOT_REQUEUED))
    wait_for_step(cluster, tmp_path, job, 20)
    slurm(cluster, "scontrol", "update", f"jobid={job}", "timelimit=1")
    cluster.wait_for_state(job, ENDED, PATIENCE_S)
    found = why("run")
    assert found.startswith(f"job {job} timed out: its time limit of 1 min came before it had saved its state")
    assert "warning_seconds in profile two_ranks" in found

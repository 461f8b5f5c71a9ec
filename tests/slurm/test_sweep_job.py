"""A sweep over both nodes: trials on all cores at once, and nothing done twice whatever happens to the job."""

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from runs import Run, planted_after, run_recipe, wait_until
from slurm_jobs import ENDED, FOUR_RANKS, PATIENCE_S, Job, preempt, processes_of, rank_pids, warn

from cifarscale.config.load import load_training_recipe
from cifarscale.runs.options import RunOptions
from cifarscale.sweeps.ray.keeper import MARK

pytestmark = pytest.mark.slurm

NUM_TRIALS = 3
SWEEP = f"""
task = "sweep"
base = "demo"
num_trials = {NUM_TRIALS}
cpus_per_trial = 2

[set]
"data.num_validation" = 100
"training.max_steps" = 40
"training.global_batch_size" = 16
"training.log_every" = 5
"training.checkpoint_every" = 20
"evaluation.every" = 20

[space]
"training.learning_rate" = {{ loguniform = [1e-4, 1e-2] }}
"""
SLOW = """
import time
from pathlib import Path
train_step = Engine._train_step
try:
    Path({go!r}).with_name("first").mkdir()
    is_first = True
except FileExistsError:
    is_first = False
def slowly(self, *arguments):
    train_step(self, *arguments)
    if not is_first and not Path({go!r}).exists():
        time.sleep(1)
Engine._train_step = slowly
"""
"""One process trains at full speed, so that one trial is complete while the others, on both nodes, are not."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "swept"


@pytest.fixture
def go(tmp_path: Path) -> Path:
    """A file until whose making trials take their time, but for the first."""
    return tmp_path / "go"


@pytest.fixture
def start(submit: Callable[..., Job], folder: Path, go: Path, tmp_path: Path) -> Callable[[], Job]:
    """Submits the sweep on both nodes."""
    recipe = tmp_path / "small-sweep.toml"
    recipe.write_text(SWEEP, encoding="utf-8")
    program = SLOW.format(go=str(go))
    environment = planted_after("cifarscale.training.engine", tmp_path, program, MARK)
    return lambda: submit(recipe, *FOUR_RANKS, run_dir=folder, environment=environment)


def finished(folder: Path) -> dict[Path, int]:
    """The results of complete trials, and when they were written."""
    return {path: path.stat().st_mtime_ns for path in folder.glob("trials/*/result.json")}


def nodes_of_trials(folder: Path) -> list[str]:
    """On which nodes trials compute now."""
    found = []
    for lease in folder.glob("trials/*/.lease"):
        try:
            environment = Path(f"/proc/{json.loads(lease.read_text())['pid']}/environ").read_bytes().split(b"\0")
        except OSError:
            continue
        found += [line.partition(b"=")[2].decode() for line in environment if line.startswith(b"SLURMD_NODENAME=")]
    return found


def of_ray(job: Job) -> dict[int, str]:
    """Processes of the job's Rays, with the folder of each."""
    processes = processes_of(job.cluster, job.id)
    return {pid: environment[MARK] for pid, environment in processes.items() if MARK in environment}


def kill_driver(cluster: Any, job: Job) -> None:
    """SLURM gives the job up; the same submit goes on."""
    os.kill(rank_pids(job)[0], signal.SIGKILL)
    cluster.wait_for_state(job.id, ENDED, PATIENCE_S)


@pytest.mark.parametrize(
    "fault",
    [preempt, *(pytest.param(fault, marks=pytest.mark.thorough) for fault in (warn, kill_driver))],
    ids=lambda fault: fault.__name__,
)
def test_no_finished_trial_runs_again(
    fault: Callable[[Any, Job], None],
    cluster: Any,
    start: Callable[[], Job],
    command: Callable[..., Any],
    data: Path,
    folder: Path,
    go: Path,
    tmp_path: Path,
) -> None:
    job = start()
    wait_until(
        lambda: finished(folder) and set(nodes_of_trials(folder)) == {"n1", "n2"},
        lambda: f"{finished(folder)}, {nodes_of_trials(folder)}: {job.log()}",
        job.has_ended,
        every_s=0.2,
    )
    before = finished(folder)
    assert len(before) < NUM_TRIALS
    assert of_ray(job)
    fault(cluster, job)
    again = folder / "slurm" / f"{job.id}-1"
    wait_until(lambda: job.has_ended() or again.exists(), job.log, every_s=0.1)  # or trials might complete now
    go.touch()
    if fault is kill_driver:
        assert "rank 0" in command("why", folder).stdout
        job = start()
    job.complete()
    after = finished(folder)
    assert len(after) == NUM_TRIALS
    assert all(after[path] == written for path, written in before.items())
    trials = json.loads((folder / "table.json").read_text())["trials"]
    again = [trial for trial in trials if trial["starts"] == 2]
    assert again, "nothing was interrupted"
    assert not {folder / "trials" / trial["folder"] / "result.json" for trial in again} & set(before)
    assert {row["State"] for row in job.rows()} == {"COMPLETED"}
    assert not of_ray(job)
    interrupted = Run(folder / "trials" / again[0]["folder"])
    alone = Run(tmp_path / "alone")
    run_recipe(load_training_recipe(str(interrupted.path / "recipe.toml")), alone.path, RunOptions(data, "cpu"))
    interrupted.assert_same_as(alone)
    shown = command("sweep-status", job.id).stdout
    assert "best    " in shown
    same = ("submit", tmp_path / "small-sweep.toml", *FOUR_RANKS, "--data", data, "--run-dir", folder)
    assert "is complete" in command(*same).stdout

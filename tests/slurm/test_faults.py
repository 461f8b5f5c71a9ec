"""Whatever happens to a job, its run ends with the weights, losses and figures of an uninterrupted one."""

import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest
from runs import Run, planted
from slurm_jobs import ENDED, PATIENCE_S, Job, preempt, rank_pids, slurm, warn

pytestmark = pytest.mark.slurm

STEPS = 120
TWO_RANKS = Path(__file__).with_name("two_ranks.toml")
SLOW = """
import os
if "SLURM_PROCID" in os.environ:
    import time
    from pathlib import Path
    from cifarscale.training.engine import Engine
    train_step = Engine._train_step
    def slowly(self, *arguments):
        train_step(self, *arguments)
        until = time.monotonic() + (0 if self._step <= 30 else 0.5 if self._step <= 60 else 5)
        while time.monotonic() < until and not Path({go!r}).exists():
            time.sleep(0.1)
    Engine._train_step = slowly
"""


@pytest.fixture
def go(tmp_path: Path) -> Path:
    """A file until whose making a job takes its time from step 30 on, so that there is time for a fault."""
    return tmp_path / "go"


@pytest.fixture
def slow(go: Path, tmp_path: Path) -> dict[str, str]:
    """The environment of a job that waits for `go`."""
    return planted(tmp_path, SLOW.format(go=str(go)))


@pytest.fixture
def job(submit: Callable[..., Job], recipe: Callable[[int], Path], slow: dict[str, str]) -> Job:
    """One on both nodes that has come to step 30."""
    job = submit(recipe(STEPS), environment=slow)
    job.wait_for_step(30)
    return job


def restart_controller(cluster: Any, job: Job) -> None:
    cluster.kill("slurmctld")
    time.sleep(1)
    cluster.start("slurmctld")


def kill_node(cluster: Any, job: Job) -> None:
    """A dead slurmd is found after some seconds; the job is queued again, and needs the node back."""
    cluster.kill("n2")
    cluster.wait_for_state(job.id, ("PENDING", "REQUEUED", "NODE_FAIL", *ENDED), PATIENCE_S)
    cluster.start("n2")


@contextmanager
def sigterm_alone(cluster: Any) -> Iterator[None]:
    """Inside the block a job is preempted as SLURM does it where nobody says otherwise: SIGTERM, and time to end."""
    conf = cluster.folder / "etc/slurm.conf"
    text = conf.read_text()
    try:
        conf.write_text(text.replace("SlurmctldParameters=preempt_send_user_signal", ""))
        slurm(cluster, "scontrol", "reconfigure")
        yield
    finally:
        conf.write_text(text)
        slurm(cluster, "scontrol", "reconfigure")


def preempt_by_sigterm(cluster: Any, job: Job) -> None:
    with sigterm_alone(cluster):
        preempt(cluster, job)
        cluster.wait_for_state(job.id, ("PENDING", "REQUEUED", *ENDED), PATIENCE_S)


@pytest.mark.parametrize(
    "fault",
    [
        kill_node,
        *(
            pytest.param(fault, marks=pytest.mark.thorough)
            for fault in (preempt, warn, preempt_by_sigterm, restart_controller)
        ),
    ],
    ids=lambda fault: fault.__name__,
)
def test_a_run_ends_as_if_nothing_had_happened(
    fault: Callable[[Any, Job], None],
    cluster: Any,
    job: Job,
    recipe: Callable[[int], Path],
    references: Callable[[Path], Run],
    go: Path,
) -> None:
    fault(cluster, job)
    go.touch()
    job.complete()
    job.run.assert_same_as(references(recipe(STEPS)))
    restarts = sum(row["JobID"] == job.id for row in cluster.sacct(job.id)) - 1
    assert restarts == (0 if fault is restart_controller else 1)
    # The step at which it was warned is saved: nothing is computed twice.
    if fault in (preempt, preempt_by_sigterm, warn):
        assert re.search(r"resuming after step (\d+)", job.log())


@pytest.mark.parametrize(
    ("delay_s", "signum", "setup"),
    [
        (1.0, "USR2", ""),
        pytest.param(1.0, "TERM", "sleep 15", marks=pytest.mark.thorough),
        *(
            pytest.param(delay_s, signum, "", marks=pytest.mark.thorough)
            for delay_s in (0.3, 1.5, 3.0)
            for signum in ("USR2", "TERM")
        ),
    ],
)
def test_a_warning_before_the_ranks_can_hear_it_costs_nothing_but_a_start(
    cluster: Any,
    submit: Callable[..., Job],
    recipe: Callable[[int], Path],
    references: Callable[[Path], Run],
    tmp_path: Path,
    delay_s: float,
    signum: str,
    setup: str,
) -> None:
    """SIGTERM by preemption, which is what tells it from others."""
    profile = tmp_path / "mine.toml"
    profile.write_text(TWO_RANKS.read_text() + (f'\nsetup = ["{setup}"]\n' if setup else ""))
    with sigterm_alone(cluster) if signum == "TERM" else nullcontext():
        job = submit(recipe(40), "--profile", profile)
        cluster.wait_for_state(job.id, ("RUNNING",), PATIENCE_S)
        time.sleep(delay_s)
        (warn if signum == "USR2" else preempt)(cluster, job)
        cluster.wait_for_state(job.id, ("PENDING", "REQUEUED", *ENDED), PATIENCE_S)
    job.complete("TIMEOUT")  # as SLURM calls it where it is done before the time to end is over
    job.run.assert_same_as(references(recipe(40)))


def test_a_run_goes_on_after_its_time_limit(
    cluster: Any, job: Job, recipe: Callable[[int], Path], references: Callable[[Path], Run], go: Path
) -> None:
    about = slurm(cluster, "scontrol", "show", "job", "--oneliner", job.id)
    hours, minutes, seconds = map(int, re.search(r" RunTime=(\d+):(\d+):(\d+)", about).groups())  # type: ignore[union-attr]
    soon = 60 * hours + minutes + (1 if seconds < 20 else 2)  # the warning, 30 s before, is still to come
    slurm(cluster, "scontrol", "update", f"jobid={job.id}", f"timelimit={soon}")
    assert cluster.wait_for_state(job.id, ("PENDING", "REQUEUED", *ENDED), PATIENCE_S) not in ENDED, job.log()
    slurm(cluster, "scontrol", "update", f"jobid={job.id}", "timelimit=30")
    go.touch()
    job.complete()
    assert sum(row["JobID"] == job.id for row in cluster.sacct(job.id)) > 1
    job.run.assert_same_as(references(recipe(STEPS)))


def test_a_killed_rank_ends_the_job_at_once_is_named_and_the_same_submit_goes_on(
    command: Callable[..., Any],
    submit: Callable[..., Job],
    recipe: Callable[[int], Path],
    references: Callable[[Path], Run],
    slow: dict[str, str],
    go: Path,
) -> None:
    job = submit(recipe(STEPS), environment=slow)
    job.wait_for_step(30)
    os.kill(rank_pids(job)[1], signal.SIGKILL)
    job.cluster.wait_for_state(job.id, ENDED, 60)
    assert job.state() == "FAILED"
    why = command("why", job.run.path).stdout
    assert why.startswith(f"job {job.id} failed: rank 1 on n2 was killed (SIGKILL)")
    first = job.id
    go.touch()
    job = submit(recipe(STEPS), environment=slow)
    assert job.id != first
    job.complete()
    job.run.assert_same_as(references(recipe(STEPS)))

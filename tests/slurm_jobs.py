"""Jobs of a real SLURM, for the tests of tests/slurm."""

import os
import subprocess
import time
from pathlib import Path
from typing import Any

from processes import having, of_process
from runs import Run, wait_until

from cifarscale.slurm.submitted import submissions

PATIENCE_S = 480
"""After which something hangs: not a measure of anything."""
FOUR_RANKS = ("--profile", "testcluster")
"""Options for jobs of two ranks on each of two nodes; without them there is one on each."""
ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "OUT_OF_MEMORY", "NODE_FAIL")


class Job:
    """A run that was submitted."""

    def __init__(self, cluster: Any, run_dir: Path) -> None:
        self.cluster, self.run = cluster, Run(run_dir)

    @property
    def id(self) -> str:
        return submissions(self.run.path)[-1].job_id

    def state(self) -> str:
        return str(self.cluster.state(self.id))

    def has_ended(self) -> str | None:
        return state if (state := self.state()) in ENDED else None

    def wait_for_step(self, step: int) -> None:
        self.run.wait_for_step(step, self.has_ended, every_s=0.1)

    def complete(self, *states: str) -> None:
        """Waits for the end, without a hand on the job; COMPLETED, or another of the states."""
        state = wait_until(
            self.has_ended,
            lambda: f"job {self.id} is {self.state()}; {self.log()}",
            every_s=0.5,
            patience_s=PATIENCE_S,
        )
        assert state in ("COMPLETED", *states), f"job {self.id} is {state}; {self.log()}"

    def log(self, rank: int = 0) -> str:
        path = submissions(self.run.path)[-1].log(rank)
        return path.read_text() if path.exists() else ""

    def rows(self) -> list[dict[str, str]]:
        """The newest start of a job that has ended, and its steps, once the accounting knows of the end."""
        deadline = time.monotonic() + PATIENCE_S
        while True:
            rows: list[dict[str, str]] = self.cluster.sacct(self.id)
            newest = rows[max(i for i, row in enumerate(rows) if row["JobID"] == self.id) :]
            if "RUNNING" not in {row["State"] for row in newest} or time.monotonic() > deadline:
                return newest
            time.sleep(0.2)


def slurm(cluster: Any, *arguments: str) -> str:
    done = subprocess.run(
        arguments, env=os.environ | cluster.environment, capture_output=True, text=True, check=True, timeout=60
    )
    return done.stdout


def preempt(cluster: Any, job: Job) -> None:
    """By a short job of a higher partition that wants both nodes."""
    slurm(cluster, "sbatch", "-p", "urgent", "-N2", "--ntasks-per-node=2", "-o", "/dev/null", "--wrap", "sleep 2")


def warn(cluster: Any, job: Job) -> None:
    slurm(cluster, "scancel", "--signal=USR2", job.id)


def processes_of(cluster: Any, job: str) -> dict[int, dict[str, str]]:
    """The processes of a job with the environment of each; other tests' clusters number their jobs from 1 as well."""
    return having({"SLURM_JOB_ID": job, "SLURM_CONF": cluster.environment["SLURM_CONF"]})


def rank_pids(job: Job) -> dict[int, int]:
    """Process ids of a job's ranks, by rank."""
    return {
        int(environment["SLURM_PROCID"]): pid
        for pid, environment in processes_of(job.cluster, job.id).items()
        if "SLURM_PROCID" in environment and b"submitit.core._submit" in of_process(f"/proc/{pid}/cmdline")
    }

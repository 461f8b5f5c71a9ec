"""What can be known of a job, from SLURM and from its run folder, before anyone draws a conclusion."""

import shlex
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from statistics import median

from cifarscale.config.recipe import TrainingRecipe
from cifarscale.errors import ClusterError
from cifarscale.launch.failures import Failure, failures
from cifarscale.runs.lease import living_holder
from cifarscale.runs.run_folder import RunFolder
from cifarscale.slurm import client as slurm
from cifarscale.slurm.job_log import newest_attempt
from cifarscale.slurm.submitted import Submitted, attempt_folder, newest_attempt_folder
from cifarscale.tracking.metrics import read_metrics

_LOG_BYTES = 2**20
"""The end of a log that is looked at."""


def _nothing(rank: int) -> Sequence[str]:
    return ()


@dataclass(frozen=True)
class Evidence:
    """A run and one of its jobs.

    Attributes:
        run: the run folder, as people call it.
        job: None for a run that was never submitted.
        state: None if SLURM does not know the job, or could not be asked.
        trouble: why SLURM could not be asked.
        attempts: all attempts of the job and their steps, from the accounting.
        failures: of the newest attempt, the cause first.
        log: lines of rank 0 in the newest attempt, with what srun said.
        tail: the last lines of a rank's log.
        holder: who writes the run folder now.
        silent_s: since the newest line of metrics, or since the start if there is none of this attempt.
        between_s: that usually lie between two lines of metrics.
    """

    run: str
    job: Submitted | None = None
    state: slurm.JobState | None = None
    trouble: str = ""
    attempts: tuple[slurm.Attempt, ...] = ()
    failures: tuple[Failure, ...] = ()
    log: tuple[str, ...] = ()
    tail: Callable[[int], Sequence[str]] = _nothing
    is_complete: bool = False
    holder: str = ""
    step: int | None = None
    max_steps: int | None = None
    silent_s: float | None = None
    between_s: float | None = None
    now: datetime | None = None

    @property
    def typed(self) -> str:
        """The run folder, as one types it into a shell."""
        return shlex.quote(self.run)

    @property
    def started_attempts(self) -> list[slurm.Attempt]:
        """Those attempts of the job that have begun, oldest first."""
        return [attempt for attempt in self.attempts if not attempt.step and attempt.start is not None]

    @property
    def newest_steps(self) -> list[slurm.Attempt]:
        """The steps of the newest attempt."""
        begins = [i for i, attempt in enumerate(self.attempts) if not attempt.step]
        return list(self.attempts[begins[-1] + 1 :]) if begins else []


def gather(run_dir: Path, name: str, job: Submitted | None) -> Evidence:
    """Raises: RunError if `run_dir` is not a run folder.

    Args:
        name: the run folder, as people call it.
    """
    folder = RunFolder(run_dir)
    recipe = folder.load_recipe()
    state, attempts, trouble = _asked(job.key) if job else (None, (), "")
    lines = read_metrics(folder.metrics)
    logs = run_dir / "logs"
    causes: list[Failure] = []
    log: list[str] = []
    if job is not None:
        logs = _newest_logs(job, state)
        log = newest_attempt(last_lines(job.log(0)))
    causes = failures(logs) if logs.is_dir() else []

    def tail(rank: int) -> Sequence[str]:
        return last_lines(job.log(rank) if job else logs / f"rank-{rank}.log")

    started = state.start.timestamp() if state and state.start else None
    times = [line["time"] for line in lines if "time" in line and "images_per_second" in line]
    newest = max((moment for moment in (started, *times[-1:]) if moment is not None), default=None)
    return Evidence(
        run=name,
        job=job,
        state=state,
        trouble=trouble,
        attempts=attempts,
        failures=tuple(causes),
        log=tuple(log),
        tail=tail,
        is_complete=folder.result() is not None,
        holder=living_holder(folder.lease),
        step=max((*(line["step"] for line in lines), *filter(None, [folder.saved_step()])), default=None),
        max_steps=recipe.training.max_steps if isinstance(recipe, TrainingRecipe) else None,
        silent_s=None if newest is None else time.time() - newest,
        between_s=median(b - a for a, b in pairwise(times)) if len(times) > 2 else None,
        now=datetime.now(),
    )


def last_lines(path: Path) -> list[str]:
    """The lines at the end of a file that may be large, or absent."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, file.seek(0, 2) - _LOG_BYTES))
            return file.read().decode(errors="replace").splitlines()
    except FileNotFoundError:
        return []


def _asked(job: slurm.JobKey) -> tuple[slurm.JobState | None, tuple[slurm.Attempt, ...], str]:
    state = None
    try:
        state = slurm.job_state(job)
        return state, tuple(slurm.attempts(job)), ""
    except ClusterError as error:
        return state, (), str(error)


def _newest_logs(job: Submitted, state: slurm.JobState | None) -> Path:
    """Where the ranks of the newest attempt that came to run left their failures."""
    if state is None:
        return newest_attempt_folder(job)
    attempt = state.restarts - (state.is_waiting and state.restarts > 0)
    return attempt_folder(Path(job.folder), job.job_id, attempt)

"""Where a run stands: as SLURM sees its job, and as its folder shows it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cifarscale.config.recipe import TrainingRecipe
from cifarscale.errors import CifarscaleError, ClusterError, RunError, short_path, typed
from cifarscale.launch.failures import Failure, failures
from cifarscale.runs.lease import living_holder
from cifarscale.runs.run_folder import RunFolder
from cifarscale.slurm import client as slurm
from cifarscale.slurm.submitted import Submitted, newest_attempt_folder, submissions
from cifarscale.tracking.metrics import read_metrics


@dataclass(frozen=True)
class RunStatus:
    """A run and its newest job. What there is none of is None.

    Attributes:
        state: of the folder: complete, writing (a process holds it), failed (by an error), interrupted (it has begun),
            not begun, or damaged.
        job_state: what SLURM says of the job; `unknown` if it has forgotten it, or cannot be asked.
        restarts: how often SLURM has started the job again.
        reason: why the job is pending, or the error that ended it.
        is_active: whether the job is queued or runs; of a run that was never submitted, whether it is being written.
    """

    run_dir: Path
    task: str
    state: str
    job_id: str | None = None
    job_state: str | None = None
    restarts: int | None = None
    reason: str = ""
    step: int | None = None
    max_steps: int | None = None
    loss: float | None = None
    images_per_second: float | None = None
    is_active: bool = False


def run_statuses(run_dirs: Sequence[Path]) -> list[RunStatus]:
    """Where each of them stands; `damaged` where the folder cannot be read."""
    newest = {run_dir: submitted[-1].key for run_dir in run_dirs if (submitted := submissions(run_dir))}
    try:
        states = slurm.job_states(list(newest.values()))
    except ClusterError:  # SLURM is not here
        states = {}
    return [
        _status_or_damage(run_dir, states.get(newest[run_dir]) if run_dir in newest else None) for run_dir in run_dirs
    ]


def _status_or_damage(run_dir: Path, job_state: slurm.JobState | None) -> RunStatus:
    """What cannot be read of one folder does not keep the others from being shown."""
    try:
        return _status(run_dir, job_state)
    except (CifarscaleError, OSError) as error:
        return RunStatus(run_dir, "", "damaged", reason=str(error))


def run_status(run_dir: Path) -> RunStatus:
    """Raises: RunError if this is not a run folder."""
    (status,) = run_statuses([run_dir])
    if status.state == "damaged":
        raise RunError(status.reason)
    return status


def _status(run_dir: Path, job_state: slurm.JobState | None) -> RunStatus:
    folder = RunFolder(run_dir)
    job = folder.load_recipe()
    lines = read_metrics(folder.metrics)
    trained: dict[str, Any] = next((line for line in reversed(lines) if "images_per_second" in line), {})
    submitted = submissions(run_dir)
    state = folder_state(folder, bool(lines))
    max_steps = job.training.max_steps if isinstance(job, TrainingRecipe) else None
    reason = ""
    if job_state is not None and job_state.is_active:
        reason = job_state.reason
    elif state != "complete":
        causes = newest_failures(submitted[-1]) if submitted else []
        reason = causes[0].message if causes else folder.error()
    return RunStatus(
        run_dir=run_dir,
        task=job.task,
        state=state,
        job_id=submitted[-1].job_id if submitted else None,
        job_state=None if not submitted else job_state.state if job_state else "unknown",
        restarts=job_state.restarts if job_state else None,
        reason=reason,
        step=max_steps if state == "complete" else trained.get("step"),
        max_steps=max_steps,
        loss=trained.get("loss"),
        images_per_second=trained.get("images_per_second"),
        is_active=(job_state is not None and job_state.is_active) if submitted else state == "writing",
    )


def folder_state(folder: RunFolder, has_lines: bool) -> str:
    """What `RunStatus.state` is, by the folder alone."""
    if folder.result() is not None:
        return "complete"
    if living_holder(folder.lease):
        return "writing"
    if folder.error():
        return "failed"
    return "interrupted" if has_lines or folder.checkpoints.is_dir() else "not begun"


def newest_failures(job: Submitted) -> list[Failure]:
    """What ended the ranks in the newest attempt of a job, the cause first."""
    return failures(newest_attempt_folder(job))


def rank_log(run_dir: Path, rank: int) -> Path | None:
    """The file that a rank of the run's newest attempt prints to; None if it has printed nothing yet."""
    submitted = submissions(run_dir)
    path = submitted[-1].log(rank) if submitted else run_dir / "logs" / f"rank-{rank}.log"
    return path if path.exists() else None


def require_rank_log(run_dir: Path, rank: int) -> Path:
    """`rank_log`. Raises: RunError if there is none yet."""
    if (path := rank_log(run_dir, rank)) is None:
        name = short_path(run_dir)
        raise RunError(f"{name} has no log of rank {rank} yet. Run: cifarscale status {typed(name)}")
    return path

"""The jobs that were queued for runs, as the run folders remember them."""

import json
import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cifarscale.errors import ClusterError, RunError
from cifarscale.runs.run_folder import RUNS_ROOT, RunFolder, run_folders
from cifarscale.slurm import client as slurm

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Submitted:
    """A job in SLURM's queue, as the run folder remembers it (a line of `slurm/jobs.jsonl`).

    Attributes:
        folder: where submitit's files and the ranks' logs lie.
        submitted: when, in UTC.
        command: what the user typed.
        script: see `slurm.JobKey`.
    """

    job_id: str
    folder: str
    profile: str
    nodes: int
    world_size: int
    submitted: str
    command: list[str]
    script: str = ""

    @property
    def key(self) -> slurm.JobKey:
        """Which of SLURM's jobs it is."""
        return slurm.JobKey(self.job_id, self.script)

    def log(self, rank: int) -> Path:
        """What a rank prints, over all attempts of the job."""
        return Path(self.folder) / f"{self.job_id}_{rank}_log.out"


def attempt_folder(folder: Path, job_id: str, attempt: int) -> Path:
    """Where the ranks of one attempt of a job meet, and leave what ended them."""
    return folder / f"{job_id}-{attempt}"


def newest_attempt_folder(job: Submitted) -> Path:
    """That of the newest attempt that came to run."""
    attempts = (path.name.rpartition("-")[2] for path in Path(job.folder).glob(f"{job.job_id}-*"))
    newest = max((int(number) for number in attempts if number.isdigit()), default=0)
    return attempt_folder(Path(job.folder), job.job_id, newest)


def submissions(run_dir: Path) -> list[Submitted]:
    """All jobs that were queued for a run, the newest last; damaged lines are left out with a warning."""
    path = RunFolder(run_dir).slurm / "jobs.jsonl"
    jobs = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else ():
        try:
            jobs.append(Submitted(**json.loads(line)))
        except (ValueError, TypeError):
            log.warning("%s: a line is damaged, and left out", path)
    return jobs


def find_run(job_or_run: str) -> tuple[Path, Submitted | None]:
    """The run that is meant by its folder, by its name below runs/, or by a job's id, such as 12 or 12_3.

    Returns: the run folder, and that job, or else the newest one that was queued for the run, None if there is none.
    Raises: RunError for what is neither.
    """
    for run_dir in (Path(job_or_run), RUNS_ROOT / job_or_run):
        if RunFolder(run_dir).recipe.is_file():
            return run_dir, next(reversed(submissions(run_dir)), None)
    if not re.fullmatch(r"\d+(_\d+)?", job_or_run):
        raise RunError(
            f"{job_or_run!r} is neither a run folder (it would hold a recipe.toml) nor a job's id, such as 12 or 12_3. "
            "Run: cifarscale runs"
        )
    for root in _places(job_or_run):
        jobs = [(run_dir, job) for run_dir in run_folders(root) for job in submissions(run_dir)]
        matches = [(run_dir, job) for run_dir, job in jobs if job.job_id == job_or_run] or [
            (run_dir, job) for run_dir, job in jobs if slurm.array_job(job.job_id) == job_or_run
        ]
        if matches:  # of several jobs that have had this number the newest
            _, newest = max(matches, key=lambda of_run: of_run[1].submitted)
            matches = [(run_dir, job) for run_dir, job in matches if job.script == newest.script]
        if len(matches) == 1:
            return matches[0]
        if matches:
            names = ", ".join(sorted((job.job_id for _, job in matches), key=lambda name: int(name.partition("_")[2])))
            raise RunError(f"job {job_or_run} is an array of {len(matches)} runs; name one of them: {names}")
    raise RunError(
        f"job {job_or_run} is not of a run below {RUNS_ROOT}/ or this folder. Name its run folder instead, or work "
        "where it was submitted"
    )


def _places(job_id: str) -> Iterator[Path]:
    """Folders that may hold the run of a job, the last by what SLURM says as long as it remembers the job's log."""
    yield RUNS_ROOT
    yield Path()
    try:
        output = slurm.output_file(job_id)
    except ClusterError:
        return
    if output is not None and len(output.parents) > 2:
        yield output.parents[2]  # of RUN/slurm/LOG, and of .arrays/RUNS/LOG

"""Looking at a cluster as a job sees it, with a job of a minute, before one that takes many GPU hours."""

import logging
import math
import os
import re
import secrets
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

from cifarscale.checks.diagnosis import Expected, diagnose
from cifarscale.checks.finding import Finding, failure, ok, without_command
from cifarscale.checks.probe import TOKEN_NAME, Report, load_reports, probing, shards_digest
from cifarscale.checks.profile_check import accounting, shared_folder
from cifarscale.errors import CifarscaleError, ClusterError, writing_to
from cifarscale.launch.call import Call
from cifarscale.launch.failures import failures
from cifarscale.launch.local import run_locally
from cifarscale.runs.run_folder import RUNS_ROOT
from cifarscale.slurm import client as slurm
from cifarscale.slurm.plan import Plan, shape, unmet_resources
from cifarscale.slurm.profile import Profile, minutes, with_options
from cifarscale.slurm.submission import check_with_slurm, queue, require_plain
from cifarscale.slurm.submitted import attempt_folder

log = logging.getLogger(__name__)
_ERROR = re.compile(
    r"[\w.]*(Error|Exception)\b|([\w.]+: )*(fatal )?error\b|.*: (command not found|No such file)", re.IGNORECASE
)
"""How a line begins that says what went wrong; those of a traceback begin with a space."""

NAME = "cifarscale-doctor"
"""Of the job."""
_REPORTS_PATIENCE_S = 15
"""A file server may show what another node has written a little later."""
_MINUTES_TO_WORK = 5
_POLL_S = 1


@contextmanager
def folder_of_its_own(profile: Profile) -> Iterator[Path]:
    """The path of a new folder that the nodes share; what is there is removed at the end, and kept after an error."""
    here = Path.cwd()
    shared = Path(profile.shared_folder).resolve() if profile.shared_folder else here
    root = (here if here.is_relative_to(shared) else shared) / RUNS_ROOT
    folder = root / ".doctor" / f"{datetime.now():%Y%m%d-%H%M%S}-{os.getpid()}"
    yield folder
    shutil.rmtree(folder, ignore_errors=True)
    with suppress(OSError):  # others have something there
        folder.parent.rmdir()
        root.rmdir()


def examine(profile: Profile, nodes: int | None, shards: Path | None, limit_s: int, folder: Path) -> Iterator[Finding]:
    """What is right and what is not, one line after the other as it is found out.

    Args:
        nodes: to look at; None for two where there are two.
        shards: the folder of shards that jobs will read; None if there is none yet.
        limit_s: how long to wait for the job to start, and for the ranks to find each other.
        folder: is made, for the job's files.
    Raises: ClusterError if the profile needs SLURM and this machine has none.
    """
    if profile.launcher == "slurm":
        profile = with_options(profile, time=str(_time_min(profile, limit_s)), warning_seconds=30)
        before = list(_before(profile, nodes))
        yield from before
        if any(finding.level == "failure" for finding in before):
            return
        require_plain(folder, profile)
    plan = shape(profile, nodes or _default_nodes(profile))
    with writing_to(folder):
        folder.mkdir(parents=True, mode=0o700)
        (folder / TOKEN_NAME).write_text(token := secrets.token_hex(8), encoding="utf-8")
    expected = Expected(
        world_size=plan.world_size,
        folder=str(folder),
        token=token,
        shards=str(shards) if shards else "",
        shards_digest=shards_digest(shards) if shards else "",
        gpus_per_node=plan.gpus_per_node,
        meeting_s=min(limit_s, 30 * plan.time_min),
    )
    call = probing(folder, shards, plan.device, expected.meeting_s)
    if profile.launcher == "local":
        job = _run_here(call, plan, folder)
    else:
        job = _run_in_queue(call, profile, plan, limit_s, folder)
    yield job
    reports = _reports(folder, plan.world_size, _REPORTS_PATIENCE_S if job.level == "ok" else 0)
    if job.level == "ok" or reports:
        yield from diagnose(reports, expected)


def _before(profile: Profile, nodes: int | None) -> Iterator[Finding]:
    """What must be right for a job to be queued at all. Raises: ClusterError if there is no SLURM."""
    try:
        configuration = slurm.configuration()
    except ClusterError as error:
        if not slurm.available():
            raise
        yield failure("SLURM", without_command(error), "ask the cluster's administrators; scontrol ping tells more")
        return
    version, name = configuration.get("SLURM_VERSION", "?"), configuration.get("ClusterName", "?")
    yield ok("SLURM", f"version {version}, cluster {name}")
    yield accounting()
    if profile.shared_folder:
        yield shared_folder(profile)
    see = f"see: cifarscale profiles check {profile.name}"
    try:
        partition = _partition(profile)
    except ClusterError as error:
        yield failure("partition", str(error), see)
        return
    for text in unmet_resources(shape(profile, nodes or 1), profile, partition).values():
        yield failure("partition", text, see)


def _partition(profile: Profile) -> slurm.Partition:
    return slurm.known_partition(profile.partition, slurm.partitions(), f"profile {profile.name}")


def _default_nodes(profile: Profile) -> int:
    """Two where there are two, which tells whether nodes reach each other."""
    if profile.launcher == "local":
        return 1 if profile.gpus_per_node or profile.tasks_per_node > 1 else 2
    return min(2, _partition(profile).nodes)


def _time_min(profile: Profile, limit_s: int) -> int:
    """Time limit of the job: enough to wait for each other, and then to work."""
    return min(minutes(profile.time), math.ceil(limit_s / 60) + _MINUTES_TO_WORK)


def _run_here(call: Call, plan: Plan, folder: Path) -> Finding:
    """Runs the ranks as processes."""
    try:
        run_locally(call, plan.world_size, folder / "logs")
    except CifarscaleError as error:
        return failure("job", str(error), f"see the logs in {folder}")
    return ok("job", f"{plan.world_size} {'process' if plan.world_size == 1 else 'processes'} on this machine")


def _run_in_queue(call: Call, profile: Profile, plan: Plan, limit_s: int, folder: Path) -> Finding:
    """Runs the ranks as a job, which is over when this returns."""
    try:
        check_with_slurm(folder, NAME, profile, plan)
        (job,) = queue([call], folder, NAME, profile, plan)
    except ClusterError as error:
        return failure("job", without_command(error), f"see: cifarscale profiles check {profile.name}")
    state = None
    try:
        state = _follow(job, lambda state: state.is_waiting, limit_s)
        if state is not None and state.is_waiting:
            return _not_started(state, profile, limit_s)
        state = _follow(job, lambda state: state.is_active, 60 * plan.time_min + 60, state)
        return _ended(state, job.job_id, folder)
    finally:
        if state is None or state.is_active:
            with suppress(ClusterError):  # it may be over by now
                slurm.cancel(job.job_id)


def _follow(
    job: slurm.JobKey,
    goes_on: Callable[[slurm.JobState], bool],
    limit_s: float,
    last_shown: slurm.JobState | None = None,
) -> slurm.JobState | None:
    """Waits while a job is in some states, and tells of each but the one that was shown last.

    Returns: the last state; None if SLURM forgot the job.
    """
    deadline = time.monotonic() + limit_s
    while (state := slurm.job_state(job)) is not None:
        if last_shown is None or (state.state, state.reason) != (last_shown.state, last_shown.reason):
            log.info("job %s: %s", job, f"{state.state} {state.reason}".strip())
            last_shown = state
        if not goes_on(state) or time.monotonic() > deadline:
            break
        time.sleep(_POLL_S)
    return state


def _not_started(state: slurm.JobState, profile: Profile, limit_s: int) -> Finding:
    when = f", and expects to start it at {state.start:%Y-%m-%d %H:%M}" if state.start else ""
    return failure(
        "job",
        f"{state.job_id} did not start within {limit_s} s, and is cancelled: SLURM says "
        f"{state.reason or 'nothing of why'}{when}",
        "ask for less (--nodes, another partition), or wait longer with --time-limit-s; sinfo shows the nodes, squeue "
        f"who is before you, cifarscale profiles check {profile.name} what may be wrong",
    )


def _ended(state: slurm.JobState | None, job_id: str, folder: Path) -> Finding:
    if state is not None and state.state == "COMPLETED":
        return ok("job", f"{job_id} ran on {state.nodes}")
    restarts = state.restarts if state else 0
    causes = failures(attempt_folder(folder, job_id, restarts))
    why = causes[0].message if causes else _first_error(sorted(folder.glob(f"{job_id}_*_log.out")))
    return failure("job", f"{job_id} is {state.state if state else 'unknown'}: {why}", f"see the logs in {folder}")


def _first_error(logs: Sequence[Path]) -> str:
    """The first error that a log tells of: later ones are about what follows from it. Else its last line."""
    texts = [path.read_text(encoding="utf-8", errors="replace") for path in logs]
    lines = [line.rstrip() for text in texts for line in text.splitlines() if line.strip()]
    if not lines:
        return "it wrote no log, as if its node did not share the folder"
    return next((line for line in lines if _ERROR.match(line)), lines[-1])


def _reports(folder: Path, world_size: int, patience_s: float) -> list[Report]:
    deadline = time.monotonic() + patience_s
    while len(reports := load_reports(folder)) < world_size and time.monotonic() < deadline:
        time.sleep(_POLL_S)
    return reports

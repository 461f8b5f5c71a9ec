"""What SLURM says, by its own commands."""

import logging
import os
import pwd
import re
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from cifarscale.errors import ClusterError
from cifarscale.slurm.profile import minutes

log = logging.getLogger(__name__)

TIMEOUT_S = 60
_STEERS = re.compile(r"(?:SLURM|SBATCH|SRUN|SALLOC|SQUEUE|SINFO|SACCT|SCONTROL|SCANCEL|SSTAT|SPRIO|SATTACH)_")
_WHERE_SLURM_IS = ("SLURM_CONF", "SLURM_CONF_SERVER", "SLURM_JWT", "SLURM_SACK_KEY", "SLURM_SACK_JWKS")
_WAITING = ("PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "SPECIAL_EXIT")
_ON_NODES = ("RUNNING", "COMPLETING", "SUSPENDED", "STOPPED", "SIGNALING", "STAGE_OUT", "RESIZING")
_MOST_CHARACTERS = 10_000  # that sacct prints of one field
_ATTEMPT_FIELDS = (
    *("JobID", "State", "ExitCode", "Submit", "Eligible", "Start", "End", "ElapsedRaw", "TimelimitRaw", "NodeList"),
    *("AllocCPUS", "TotalCPU", "MaxRSS", "ReqTRES", "NNodes", "NTasks", "Reason", "SubmitLine"),
)


@dataclass(frozen=True)
class JobKey:
    """Which job is meant. A number alone is another job's on another cluster, or once the cluster's database is new.

    Attributes:
        job_id: such as 12, or 12_3 of an array.
        script: name of the file that sbatch was given, which no other submission has; empty if any job will do.
    """

    job_id: str
    script: str = ""

    def __str__(self) -> str:
        return self.job_id


@dataclass(frozen=True)
class JobState:
    """A job as SLURM sees it now.

    Attributes:
        state: one word, such as PENDING, RUNNING, COMPLETED, TIMEOUT.
        reason: why it is pending, or empty.
        restarts: how often it was queued again.
        start: when it started, or is expected to; None if SLURM cannot tell.
    """

    job_id: str
    state: str
    reason: str = ""
    restarts: int = 0
    nodes: str = ""
    start: datetime | None = None

    @property
    def is_waiting(self) -> bool:
        return self.state in _WAITING

    @property
    def is_active(self) -> bool:
        """Whether it is queued or runs."""
        return self.state in _WAITING or self.state in _ON_NODES


@dataclass(frozen=True)
class Attempt:
    """One start of a job, or one step of it, from the accounting. Memory in GiB, times in seconds.

    Attributes:
        step: empty for the job, 0 for what srun started in it, `batch` for its script.
        max_memory_gb: the most that a task used.
        requested_memory_gb: of all nodes together; None if it is left to the cluster, and for a step.
        tasks: 0 for a job.
        cancelled_by: the user's name, or number.
    """

    job_id: str
    step: str
    state: str
    exit_code: int
    signal: int
    submit: datetime | None
    eligible: datetime | None
    start: datetime | None
    end: datetime | None
    elapsed_s: int
    time_limit_min: int | None
    nodes: str
    cpus: int
    cpu_s: float
    max_memory_gb: float | None
    reason: str
    requested_memory_gb: float | None = None
    num_nodes: int = 1
    tasks: int = 0
    cancelled_by: str = ""


@dataclass(frozen=True)
class Partition:
    """What a partition offers. `max_time_min` is None where it sets no limit; `gpus` are those of its largest node."""

    name: str
    nodes: int
    cpus: int
    gpus: int
    max_time_min: int | None


def plain_environment() -> dict[str, str]:
    """The environment for SLURM's commands: whatever changes what they do or print is left out (their manual pages).

    Such variables override what a profile says (SBATCH_PARTITION), break what is read (SLURM_TIME_FORMAT), or belong to
    the job from within which this one is submitted (SLURM_RESTART_COUNT). Where SLURM is, and credentials, stay.
    """
    return {name: value for name, value in os.environ.items() if not _STEERS.match(name) or name in _WHERE_SLURM_IS}


@contextmanager
def in_plain_environment() -> Iterator[None]:
    """For what is called inside the block, and what it submits: a job inherits the environment of sbatch."""
    before = dict(os.environ)
    kept = plain_environment()
    for name in before.keys() - kept.keys():
        del os.environ[name]
    try:
        yield
    finally:
        os.environ.update({name: before[name] for name in before.keys() - kept.keys()})


def overridden() -> dict[str, str]:
    """What the user's environment asks of sbatch, which a profile decides instead."""
    return {name: value for name, value in sorted(os.environ.items()) if name.startswith("SBATCH_")}


def command(*arguments: str) -> str:
    """What one of SLURM's commands prints.

    Raises: ClusterError if there is no such command here, it fails, or does not answer within TIMEOUT_S.
    """
    name = arguments[0]
    if shutil.which(name) is None:
        raise ClusterError(
            f"{name} is not found: this machine has no SLURM. Run this on a login node, or use --profile local"
        )
    try:
        done = subprocess.run(
            arguments, env=plain_environment(), capture_output=True, text=True, timeout=TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired:
        raise ClusterError(f"{name} did not answer within {TIMEOUT_S} s. Run: cifarscale doctor") from None
    if done.returncode:
        message = (
            " ".join(line.strip() for line in done.stderr.splitlines() if line.strip()) or f"code {done.returncode}"
        )
        raise ClusterError(f"{name} failed: {message}")
    return done.stdout


def job_state(job: JobKey) -> JobState | None:
    """A job that is queued, runs, or has ended; None if SLURM does not know it.

    Raises: ClusterError if the controller does not answer.
    """
    return _from_controller(job) or _from_accounting(job, _known_attempts(job))


def job_states(jobs: Sequence[JobKey]) -> dict[JobKey, JobState]:
    """States of several jobs, without those unknown to SLURM. It is asked once for all that have ended."""
    known = _known_attempts(*jobs)
    ended = {job: state for job in jobs if (state := _from_accounting(job, known)) and not state.is_active}
    states = {job: _from_controller(job) or _from_accounting(job, known) for job in jobs if job not in ended}
    return ended | {job: state for job, state in states.items() if state}


class Watch:
    """Asks SLURM how a job is, ever less often while nothing changes, and bears with one that does not answer.

    Administrators lock people out whose commands ask every second; a controller that is restarted is away for minutes.
    """

    def __init__(self, job: JobKey, first_s: float = 2, longest_s: float = 60, patience_s: float = 1800) -> None:
        """
        Args:
            first_s, longest_s: between two questions, doubled from one to the other.
            patience_s: how long SLURM may not answer, before that is an error.
        """
        self.job = job
        self._first_s, self._longest_s, self._patience_s = first_s, longest_s, patience_s
        self._pause_s, self._next = first_s, 0.0
        self._silent_since: float | None = None
        self.state: JobState | None = None
        """As last seen; None if SLURM does not know the job."""
        self.is_active = True
        """Whether the job is queued or runs, as far as is known."""

    def look(self) -> bool:
        """Asks SLURM if it is time to. Returns: whether the job's state is another one than before.

        Raises: ClusterError if SLURM has not answered for too long.
        """
        now = time.monotonic()
        if now < self._next:
            return False
        try:
            state = job_state(self.job)
        except ClusterError as error:
            if not available():
                raise
            if self._silent_since is None:
                self._silent_since = now
                log.warning("%s; asking again", error)
            if now - self._silent_since > self._patience_s:
                raise
            self._later(now)
            return False
        self._silent_since = None
        changed = state != self.state or self._next == 0
        self.state, self.is_active = state, state is not None and state.is_active
        self._pause_s = self._first_s if changed else self._pause_s
        self._later(now)
        return changed

    def _later(self, now: float) -> None:
        self._next = now + self._pause_s
        self._pause_s = min(2 * self._pause_s, self._longest_s)


def _from_controller(job: JobKey) -> JobState | None:
    """A job that is queued, runs, or ended some minutes ago. Raises: ClusterError if the controller does not answer."""
    try:
        shown = command("scontrol", "show", "job", "--oneliner", job.job_id).splitlines()
    except ClusterError as error:
        if "Invalid job id" not in str(error):
            raise
        return None
    for line in shown:
        fields = dict(re.findall(r"(\w+)=(\S*)", line))
        names = (fields["JobId"], f"{fields.get('ArrayJobId')}_{fields.get('ArrayTaskId')}")
        if job.job_id in names and job.script in line:
            state, reason = fields["JobState"], fields["Reason"]
            nodes = fields.get("NodeList", "").replace("(null)", "")
            start = _time(fields["StartTime"])
            return JobState(job.job_id, state, _of_waiting(state, reason), int(fields["Restarts"]), nodes, start)
    return None


def _known_attempts(*jobs: JobKey) -> list[Attempt]:
    """None where the database is away: what ended is not known then, and whatever is active the controller knows."""
    try:
        return attempts(*jobs) if jobs else []
    except ClusterError as error:
        log.debug("no accounts: %s", error)
        return []


def _from_accounting(job: JobKey, known: Sequence[Attempt]) -> JobState | None:
    own_attempts = [attempt for attempt in known if attempt.job_id == job.job_id and not attempt.step]
    if not own_attempts:
        return None
    last = own_attempts[-1]
    return JobState(
        job.job_id, last.state, _of_waiting(last.state, last.reason), len(own_attempts) - 1, last.nodes, last.start
    )


def _of_waiting(state: str, reason: str) -> str:
    """SLURM leaves the reason why a job was last pending where it is when the job has ended."""
    return reason if state in _WAITING and reason != "None" else ""


def attempts(*jobs: JobKey) -> list[Attempt]:
    """All attempts of some jobs in their order, each followed by its steps.

    Raises: ClusterError if the accounting does not answer.
    """
    scripts = {job.job_id: job.script for job in jobs}
    rows = command(
        *("sacct", "--noheader", "--parsable2", "--duplicates", "--jobs", ",".join(scripts)),
        *("--format", ",".join(f"{field}%{_MOST_CHARACTERS}" for field in _ATTEMPT_FIELDS)),
    )
    records, is_meant = [], False
    for row in rows.splitlines():
        values = dict(zip(_ATTEMPT_FIELDS, row.split("|", len(_ATTEMPT_FIELDS) - 1), strict=True))
        name, _, step = values["JobID"].partition(".")
        if not step:
            is_meant = name in scripts and scripts[name] in values["SubmitLine"]
        if name not in scripts or not is_meant:
            continue
        code, _, signal = values["ExitCode"].partition(":")
        records.append(
            Attempt(
                job_id=name,
                step=step,
                state=values["State"].split()[0],
                exit_code=int(code or 0),
                signal=int(signal or 0),
                submit=_time(values["Submit"]),
                eligible=_time(values["Eligible"]),
                start=_time(values["Start"]),
                end=_time(values["End"]),
                elapsed_s=int(values["ElapsedRaw"] or 0),
                time_limit_min=int(values["TimelimitRaw"]) if values["TimelimitRaw"].isdigit() else None,
                nodes=values["NodeList"],
                cpus=int(values["AllocCPUS"] or 0),
                cpu_s=_seconds(values["TotalCPU"]),
                max_memory_gb=_gibibytes(values["MaxRSS"]),
                reason="" if values["Reason"] == "None" else values["Reason"],
                requested_memory_gb=_gibibytes(re.sub(r"(?:.*,)?mem=([^,]*).*|.*", r"\1", values["ReqTRES"])),
                num_nodes=int(values["NNodes"] or 1),
                tasks=int(values["NTasks"] or 0),
                cancelled_by=_user(values["State"].partition(" by ")[2]),
            )
        )
    return records


def output_file(job_id: str) -> Path | None:
    """The file that a job's script prints to; None if SLURM does not know the job any more, or it has none."""
    try:
        shown = command("scontrol", "show", "job", job_id)
    except ClusterError as error:
        if "Invalid job id" not in str(error):
            raise
        return None
    match = re.search(r"^ *StdOut=(/.*)$", shown, re.MULTILINE)
    return Path(match[1]) if match else None


def require_accounting() -> str:
    """Asks for accounts, from which it is known how jobs ended. Returns: why they do not answer now, or nothing.

    Raises: ClusterError if this cluster keeps none.
    """
    try:
        command("sacct", "--noheader", "--jobs", "1")
    except ClusterError as error:
        if "not found" in str(error):
            raise
        if "storage is disabled" not in str(error):
            return str(error)
        raise ClusterError(
            f"this cluster's SLURM keeps no accounts, without which nobody can tell how a job ended ({error}). "
            "Ask its administrators for slurmdbd"
        ) from error
    return ""


def partitions() -> dict[str, Partition]:
    """All partitions by name; the default one comes first."""
    rows = command("sinfo", "--all", "--noheader", "--format", "%P|%D|%c|%G|%l")
    by_name: dict[str, Partition] = {}
    default = ""
    for row in rows.splitlines():
        name, nodes, cpus, gres, limit = row.split("|")
        if name.endswith("*"):
            default = name = name[:-1]
        before = by_name.get(name, Partition(name, 0, 0, 0, None))
        gpus = sum(int(number or 1) for number in re.findall(r"\bgpu(?::[^:,(]+?)??(?::(\d+))?(?=[,(]|$)", gres))
        most = minutes(limit) if limit != "infinite" else None
        by_name[name] = Partition(
            name, before.nodes + int(nodes), max(before.cpus, int(cpus.rstrip("+"))), max(before.gpus, gpus), most
        )
    return dict(sorted(by_name.items(), key=lambda item: item[0] != default))


def configuration() -> dict[str, str]:
    """The settings that the cluster runs with, by their names in slurm.conf."""
    rows = (line.partition("=") for line in command("scontrol", "show", "config").splitlines())
    return {key.strip(): value.strip() for key, separator, value in rows if separator}


def partition_settings(name: str) -> dict[str, str]:
    """What `scontrol show partition` says of one, such as State, PreemptMode and GraceTime."""
    return dict(re.findall(r"(\w+)=(\S*)", command("scontrol", "show", "partition", "--oneliner", name)))


def node_states(partition: str) -> dict[str, int]:
    """How many nodes are in which state, in SLURM's words: idle, mixed, allocated, drained, down*, …

    Args:
        partition: one, or several as in `a,b`; all for an empty name.
    """
    states: dict[str, int] = {}
    chosen = ("--partition", partition) if partition else ("--all",)
    for row in command("sinfo", "--noheader", *chosen, "--format", "%D|%T").splitlines():
        nodes, state = row.split("|")
        states[state] = states.get(state, 0) + int(nodes)
    return states


def is_away(node_state: str) -> bool:
    """Whether a node in this state runs no jobs now; `*` is one that does not answer."""
    return node_state.startswith(("down", "drain", "fail", "maint", "unk", "power")) or node_state.endswith("*")


def cancel(job_id: str) -> None:
    """Has SLURM end a job. Raises: ClusterError if it does not know it."""
    command("scancel", job_id)


def array_job(job_id: str) -> str:
    """The part of an id that all jobs of an array share."""
    return job_id.partition("_")[0]


def _time(text: str) -> datetime | None:
    try:
        return datetime.fromisoformat(text)
    except ValueError:  # "Unknown", "None", "N/A"
        return None


def _seconds(text: str) -> float:
    """Of a time as sacct writes it: [D-][H:]M:S[.fraction]."""
    days, _, clock = text.rpartition("-")
    seconds = 0.0
    for part in clock.split(":"):
        seconds = seconds * 60 + float(part or 0)
    return int(days or 0) * 86_400 + seconds


def _user(number: str) -> str:
    """The name of a user; the number of one that is not known here."""
    try:
        return pwd.getpwuid(int(number)).pw_name
    except (ValueError, KeyError):
        return number


def _gibibytes(text: str) -> float | None:
    units = {"K": 2**-20, "M": 2**-10, "G": 1.0, "T": 2**10}
    match = re.fullmatch(r"([\d.]+)([KMGT]?)", text)
    if match is None:
        return None
    return float(match[1]) * units.get(match[2], 2**-30)


def known_partition(name: str, by_name: dict[str, Partition], where: str) -> Partition:
    """A partition by name, the default one for an empty name; of several (`a,b`), the most that one of them offers.

    Raises: ClusterError if there is none, with those that there are.
    """
    if not name and by_name:
        return next(iter(by_name.values()))
    names = name.split(",")
    if unknown := [each for each in names if each not in by_name]:
        raise ClusterError(
            f"{where}: partition = {unknown[0]!r} is not one of this cluster's: {', '.join(by_name) or 'none'}"
        )
    offered = [by_name[each] for each in names]
    limits = [each.max_time_min for each in offered]
    return Partition(
        name,
        nodes=max(each.nodes for each in offered),
        cpus=max(each.cpus for each in offered),
        gpus=max(each.gpus for each in offered),
        max_time_min=None if None in limits else max(filter(None, limits)),
    )


def available() -> bool:
    """Whether this machine has SLURM's commands."""
    return shutil.which("sbatch") is not None

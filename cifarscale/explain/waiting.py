"""SLURM's reasons why a job is pending: what each means, and what one can do."""

import re
from dataclasses import dataclass

_SMALLER = (
    "A smaller request starts sooner: fewer --nodes or --gpus-per-node, or a shorter --time, for which SLURM may find "
    "a gap (a run that needs longer goes on in the same job)"
)
_RESUBMIT = "It will not start as it is. Submit another request, after:\ncifarscale cancel {job}"
_LIMITS = "The limits:\nsacctmgr show qos; sacctmgr show associations user=$USER"
_YOURS = "Your jobs:\nsqueue -u $USER"
_NOW = "To start it now:\nscontrol update jobid={job} starttime=now"
_RELEASE = "To let it go:\nscontrol release {job}"
_UNSEEN = "SLURM has not looked at it yet, which takes some seconds"
REQUEUE_HOLD_MIN = 2
"""How long SLURM holds a job that was queued again; one that is let go sooner can fail, its credentials "revoked"."""


@dataclass(frozen=True)
class Reason:
    """What a reason means. `advice` is what to do, where there is anything but to wait."""

    meaning: str
    advice: tuple[str, ...] = ()


_REASONS: dict[str, tuple[str, ...]] = {
    "|None": (_UNSEEN,),
    "Resources": ("it is the next to start when enough nodes, cores, memory and GPUs are free", _SMALLER),
    "Priority": ("jobs of a higher priority wait before it", _SMALLER, "What its priority is made of:\nsprio -j {job}"),
    "BeginTime": ("its earliest time of start has not come", _NOW),
    "Dependency": ("it waits for another job to end", "Which one:\nscontrol show job {job}"),
    "DependencyNeverSatisfied": ("the job that it waits for ended in another way than it asked for", _RESUBMIT),
    "JobHeldUser|.*UserHold": ("its owner holds it", _RELEASE),
    "JobHeldAdmin": ("an administrator holds it, and only they let it go", "Ask them about job {job}"),
    "JobHoldMaxRequeue|.*requeued_held": (
        "SLURM could not start it on its nodes, queued it again, and holds it",
        "What the start left behind:\ncifarscale logs {job}",
        _RELEASE,
    ),
    "JobArrayTaskLimit": (
        "as many jobs of its array run as --at-once allows",
        "To allow more:\nscontrol update jobid={job} arraytaskthrottle=N",
    ),
    "ReqNodeNotAvail|Nodes_required.*|NodeDown": (
        "nodes that it needs are down, drained, or reserved for others",
        "Which ones, and why:\nsinfo -R",
        "Before a maintenance only jobs start that end by then: take a shorter --time",
        "If its profile names nodes or a constraint, name others",
    ),
    "Reservation": ("its reservation has not begun", "When it begins:\nscontrol show reservation"),
    "ReservationDeleted": ("its reservation is gone", _RESUBMIT),
    "BadConstraints": ("no node has what it asks for", "What nodes have:\nsinfo -o '%N %c %m %G %f'", _RESUBMIT),
    "PartitionDown|PartitionInactive": ("its partition starts no jobs now", "Those that do:\nsinfo"),
    "PartitionTimeLimit": (
        "it asks for more time than its partition has",
        "The limits:\nsinfo -o '%P %l'",
        _RESUBMIT,
    ),
    "PartitionNodeLimit": (
        "it asks for more nodes than its partition has",
        "What it has:\nsinfo",
        _RESUBMIT,
    ),
    "PartitionConfig|AccountNotAllowed|QOSNotAllowed": (
        "its partition does not take jobs of this account, QOS or size",
        "What it takes:\nscontrol show partition",
        _RESUBMIT,
    ),
    "InvalidAccount|InvalidQOS": ("its account or QOS is not one that you may use", _LIMITS, _RESUBMIT),
    "(QOS|Assoc).*PerJob(Limit)?|(QOS|Assoc)Min.*|AssocMaxWall.*": (
        "it asks for more, or less, than a job of yours may",
        _LIMITS,
        _RESUBMIT,
    ),
    "(QOS|Assoc)Grp.*(Minutes|Wall|RunMin).*|.*UsageThreshold.*": (
        "the computing time of your group is used up, or promised to jobs that run",
        "What is left:\nsshare -l",
        "With a shorter --time it may still fit",
    ),
    "(QOS|Assoc)Grp.*": ("the jobs of your group use as much as they may together, until one of them ends", _LIMITS),
    "(QOS|Assoc)Max.*|(QOS|Assoc)(Job|Resource)Limit|Max.*Per(User|Account)": (
        "your jobs use as much as they may at a time, until one of them ends",
        _YOURS,
        _LIMITS,
        _SMALLER,
    ),
    "Licenses": ("a licence that it asks for is in use", "Which are free:\nscontrol show licenses"),
    "Cleaning|Prolog|Configuring": ("its nodes are being made ready",),
}
"""By a pattern of SLURM's codes; the first that fits counts."""


def why_waiting(reason: str, restarts: int = 0) -> Reason:
    """What a reason such as `Priority` or `ReqNodeNotAvail,_UnavailableNodes:n1` means.

    Args:
        restarts: how often the job was queued again.
    Returns: with `{job}` in the advice for the job's id.
    """
    code = re.split(r"[,\s(:]", reason, maxsplit=1)[0]
    if code == "BeginTime" and restarts:
        return Reason(
            f"it was queued again, and SLURM holds such a job until its last start's credentials expire "
            f"(by default {REQUEUE_HOLD_MIN} minutes)"
        )
    for pattern, (meaning, *advice) in _REASONS.items():
        if re.fullmatch(pattern, code):
            return Reason(meaning, tuple(advice))
    link = "What that means:\nhttps://slurm.schedmd.com/job_reason_codes.html"
    return Reason("for a reason of SLURM's own", (link, "All about it:\nscontrol show job {job}"))

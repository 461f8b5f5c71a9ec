"""Why a job ended that did not complete its run."""

import math
import re
from collections.abc import Callable, Sequence

from cifarscale.errors import EXIT_INTERRUPTED
from cifarscale.explain.evidence import Evidence
from cifarscale.explain.explanation import Explanation, again, duration, end_of, in_profile, last_lines_of
from cifarscale.launch.failures import Failure
from cifarscale.slurm.client import Attempt
from cifarscale.slurm.job_log import Death, deaths, ranks_started, said_by_slurm

NEAR_LIMIT = 0.9
"""Part of the memory asked for, above which a killed rank is taken for one that wanted more. SLURM only samples it."""


def why_ended(evidence: Evidence) -> Explanation:
    """Of a job that SLURM knows, and that neither waits nor runs."""
    assert evidence.state is not None
    return _ENDINGS.get(evidence.state.state, failed)(evidence)


def memory_to_ask_for(used_gb: float | None, requested_gb: float | None) -> int:
    """GB a node for a job that ran out of memory: what it used, as far as SLURM saw it, is less than it wanted."""
    return max(1, math.ceil(max(1.5 * (requested_gb or 0), 1.25 * (used_gb or 0))))


def memory_per_node(attempt: Attempt, steps: Sequence[Attempt]) -> tuple[float | None, float | None]:
    """GiB that were used at most on a node, if all of its tasks were as large as the largest, and that were asked for.

    Args:
        steps: of this attempt.
    """
    used = [step.max_memory_gb * math.ceil(max(step.tasks, 1) / step.num_nodes) for step in steps if step.max_memory_gb]
    requested = attempt.requested_memory_gb / attempt.num_nodes if attempt.requested_memory_gb else None
    return max(used, default=None), requested


def failed(evidence: Evidence) -> Explanation:
    """A rank that was killed has told nothing itself, but what it did to the others may be told by them."""
    reporters = {failure.rank for failure in evidence.failures}
    first = next(iter(deaths(evidence.log)), None)
    if first is not None and first.is_by_signal and not reporters & set(first.ranks):
        return _killed(evidence, first)
    if evidence.failures:
        return reported(evidence, evidence.failures[0], _job_ended(evidence))
    details = _complaints(evidence)
    if first is not None:
        headline = f"{_job_ended(evidence)}: {_named(first.ranks)} on {first.node} {_lower(first.how)} and told nothing"
        return Explanation(headline, details, last_lines_of(evidence, first.ranks[0]), again(evidence))
    if ranks_started(evidence.log):
        headline = f"{_job_ended(evidence)}, and nothing tells why"
        return Explanation(headline, details, last_lines_of(evidence, 0), again(evidence))
    headline = f"{_job_ended(evidence)} before any rank ran: its script ended with an error"
    advice = (f"Look at setup, python and container{in_profile(evidence)}", *again(evidence))
    return Explanation(headline, details, last_lines_of(evidence, 0), advice)


def reported(evidence: Evidence, first: Failure, who: str, details: tuple[str, ...] = ()) -> Explanation:
    """A rank left its error."""
    if first.exit_code == EXIT_INTERRUPTED:
        return Explanation(f"{who}: it was asked to stop {_saved(first)}", details, None, again(evidence))
    headline = f"{who}: rank {first.rank} on {first.host} died first: {_first_line(first.message)}"
    if missing := _missing(first):
        ranks = tuple(rank for rank, _ in missing if rank not in {failure.rank for failure in evidence.failures})
        quote = last_lines_of(evidence, ranks[0]) if ranks else None
        advice = ("Whether nodes reach each other:\ncifarscale doctor", *again(evidence))
        return Explanation(headline, (*details, *_complaints(evidence)), quote, advice)
    reporters = {failure.rank for failure in evidence.failures}
    silent = sorted(set(range(evidence.job.world_size)) - reporters) if evidence.job else []
    if not first.expected and re.search(r"connection (closed|reset)|timed? ?out", first.message, re.IGNORECASE):
        details = (*details, "It lost another rank, or waited for one in vain, so the cause lies there")
        if silent:
            quote = last_lines_of(evidence, silent[0])
            return Explanation(
                headline,
                (*details, f"{_named(silent)} told nothing", *_complaints(evidence)),
                quote,
                again(evidence),
            )
    hints = [hint for pattern, hint in _HINTS.items() if re.search(pattern, first.message)]
    return Explanation(headline, (*details, *_complaints(evidence)), end_of(first), (*hints, *again(evidence)))


def _killed(evidence: Evidence, first: Death) -> Explanation:
    used, requested = _memory(evidence)
    near = used is not None and requested is not None and used >= NEAR_LIMIT * requested
    who = f"{_named(first.ranks)} on {first.node}"
    quote = last_lines_of(evidence, first.ranks[0])
    if "memory" in first.how.lower() or (first.how.startswith("Killed") and near):
        return _out_of_memory(evidence, f"{_job_ended(evidence)}: {who} ran out of memory")
    how, advice = next(
        (meaning for word, meaning in _SIGNALS.items() if first.how.startswith(word)),
        (f"was ended by a signal ({first.how})", ()),
    )
    if len(first.ranks) > 1:
        how = re.sub(r"^was ", "were ", how)
    headline = f"{_job_ended(evidence)}: {who} {how}"
    details = (*_memory_details(used, requested), *_complaints(evidence))
    return Explanation(headline, details, quote, (*(line.format(node=first.node) for line in advice), *again(evidence)))


def _out_of_memory(evidence: Evidence, headline: str = "") -> Explanation:
    used, requested = _memory(evidence)
    first = next((death for death in deaths(evidence.log) if death.is_by_signal), None)
    where = f": {_named(first.ranks)} on {first.node}" if first else ""
    wanted = memory_to_ask_for(used, requested)
    advice = (
        f"Ask for more: memory_gb = {wanted} (a node){in_profile(evidence)}"
        if used or requested
        else f"Ask for more: memory_gb (a node){in_profile(evidence)}",
        "Or use less: fewer --num-workers, or fewer ranks on a node",
        *again(evidence),
    )
    quote = last_lines_of(evidence, first.ranks[0]) if first else None
    details = (*_memory_details(used, requested), *_complaints(evidence))
    return Explanation(headline or f"{_job_ended(evidence)}: it ran out of memory{where}", details, quote, advice)


def _timeout(evidence: Evidence) -> Explanation:
    last = evidence.started_attempts[-1] if evidence.started_attempts else None
    limit = f" of {duration(60 * last.time_limit_min)}" if last and last.time_limit_min else ""
    headline = (
        f"{_job_ended(evidence)}: its time limit{limit} came before it had saved its state and queued itself again"
    )
    if evidence.failures:
        return reported(evidence, evidence.failures[0], f"{_job_ended(evidence)} at its time limit{limit}")
    warned = any("stopped: after step" in line or "SLURM warned" in line for line in evidence.log)
    warning = (
        f"The warning came too late: raise warning_seconds{in_profile(evidence)} above what a step and a "
        "checkpoint take"
        if warned
        else "It was not warned, or not at a moment when it listened: during its start, an evaluation or a final metric"
    )
    advice = (
        f"If that happens again, take a longer --time, or raise warning_seconds{in_profile(evidence)}",
        *again(evidence),
    )
    return Explanation(headline, (warning, *_complaints(evidence)), last_lines_of(evidence, 0), advice)


def _node_failed(evidence: Evidence) -> Explanation:
    text = "\n".join(evidence.log)
    failed = re.findall(r"[Nn]ode failure on (\S+)", text)
    nodes = ", ".join(dict.fromkeys(failed)) or (
        f"one of {evidence.started_attempts[-1].nodes}" if evidence.started_attempts else "a node"
    )
    advice = (
        f'To keep away from it: sbatch = {{ exclude = "{failed[0] if failed else "NODE"}" }}{in_profile(evidence)}',
        *again(evidence),
    )
    return Explanation(
        f"{_job_ended(evidence)}: {nodes} failed, and SLURM did not queue it again", _complaints(evidence), None, advice
    )


def _preempted(evidence: Evidence) -> Explanation:
    headline = f"{_job_ended(evidence)}: a job of higher priority took its nodes, and SLURM did not queue it again"
    advice = ("Where preemption requeues:\nscontrol show config | grep Preempt", *again(evidence))
    return Explanation(headline, _complaints(evidence), None, advice)


def _cancelled(evidence: Evidence) -> Explanation:
    by = next((attempt.cancelled_by for attempt in reversed(evidence.attempts) if attempt.cancelled_by), "")
    when = "" if evidence.started_attempts else " before it started"
    headline = f"{_job_ended(evidence)}{f' by {by}' if by else ''}{when}"
    stopped = next((failure for failure in evidence.failures if failure.exit_code == EXIT_INTERRUPTED), None)
    details = (f"It stopped {_saved(stopped)}",) if stopped else ()
    return Explanation(headline, details, None, again(evidence))


def _completed(evidence: Evidence) -> Explanation:
    headline = f"{_job_ended(evidence)} without an error, yet the run has no result"
    advice = (f"What it says:\ncifarscale logs {evidence.typed}", *again(evidence))
    return Explanation(headline, (), last_lines_of(evidence, 0), advice)


def _never_ran(what: str, *advice: str) -> Callable[[Evidence], Explanation]:
    return lambda evidence: Explanation(
        f"{_job_ended(evidence)}: {what}", _complaints(evidence), None, (*advice, *again(evidence))
    )


def _memory(evidence: Evidence) -> tuple[float | None, float | None]:
    return (
        memory_per_node(evidence.started_attempts[-1], evidence.newest_steps)
        if evidence.started_attempts
        else (None, None)
    )


def _memory_details(used: float | None, requested: float | None) -> tuple[str, ...]:
    if used is None:
        return ()
    asked = f" of {requested:.1f} GB that it was given" if requested else ""
    return (f"SLURM saw it use up to {used:.1f} GB a node{asked}",)


def _missing(failure: Failure) -> list[tuple[int, str]]:
    """Ranks and nodes that a rank has waited for in vain at the rendezvous."""
    match = re.search(r"waited (?:\d+ s|in vain) for (.*?)(?:\.| to write)", failure.message)
    if match is None or not failure.expected:
        return []
    return [(int(rank), node) for rank, node in re.findall(r"rank (\d+)(?: \(([^)]*)\))?", match[1])]


def _saved(stop: Failure) -> str:
    """At which step a rank stopped, without what to do then."""
    return stop.message.partition(". ")[0]


def _lower(text: str) -> str:
    return text[:1].lower() + text[1:]


def _first_line(text: str) -> str:
    return text.strip().splitlines()[0] if text.strip() else "(no message)"


def _named(ranks: Sequence[int]) -> str:
    return f"rank{'s' if len(ranks) > 1 else ''} {', '.join(map(str, ranks))}"


def _job_ended(evidence: Evidence) -> str:
    """Such as `job 12 failed`."""
    assert evidence.job is not None
    state = evidence.state.state.lower().replace("_", " ") if evidence.state else "failed"
    verb = {"timeout": "timed out", "node fail": "failed", "out of memory": "failed", "boot fail": "failed"}
    was = {"preempted": "was preempted", "cancelled": "was cancelled"}
    return f"job {evidence.job.job_id} {verb.get(state) or was.get(state) or state}"


def _complaints(evidence: Evidence) -> tuple[str, ...]:
    return tuple(f"SLURM says: {line}" for line in said_by_slurm(evidence.log)[:3])


_ENDINGS: dict[str, Callable[[Evidence], Explanation]] = {
    "COMPLETED": _completed,
    "OUT_OF_MEMORY": _out_of_memory,
    "TIMEOUT": _timeout,
    "NODE_FAIL": _node_failed,
    "PREEMPTED": _preempted,
    "CANCELLED": _cancelled,
    "BOOT_FAIL": _never_ran("its nodes did not boot", "Which ones are down:\nsinfo -R"),
    "LAUNCH_FAILED": _never_ran("SLURM could not start it on its nodes", "Which ones are down:\nsinfo -R"),
    "DEADLINE": _never_ran("it could not end before its deadline", "Take a later --deadline, or a shorter --time"),
    "REVOKED": _never_ran("another cluster of the federation started it"),
}
"""By SLURM's states; whatever else there is counts as failed."""

_SIGNALS: dict[str, tuple[str, tuple[str, ...]]] = {
    "Killed": (
        "was killed (SIGKILL)",
        (
            "By whom SLURM does not tell: a kernel short of memory does that (dmesg on {node}), or somebody",
            "If it was memory, raise memory_gb in the profile, or take fewer --num-workers",
        ),
    ),
    "Terminated": ("was asked to end (SIGTERM), by neither this job nor SLURM's warning", ()),
    "Segmentation": (
        "crashed in compiled code (SIGSEGV)",
        ('If it comes back on {node} alone, keep away from it: sbatch = {{ exclude = "{node}" }} in the profile',),
    ),
    "Bus error": (
        "could not read or write mapped memory (SIGBUS)",
        ("Often /dev/shm is full, or a file shrank while it was read: df -h /dev/shm on {node}, fewer --num-workers",),
    ),
    "Aborted": (
        "was aborted by a library (SIGABRT)",
        ('Its last lines tell which; of NCCL one learns more with environment = {{ NCCL_DEBUG = "INFO" }}',),
    ),
}
"""What a signal means, and what to do, by what srun calls it."""

_HINTS = {
    r"CUDA out of memory|OutOfMemoryError": "Fewer images on each GPU: more ranks, or --set training.precision=bf16",
    r"No space left|Disk quota": "Free some space; a checkpoint that was cut short is passed over",
    r"ModuleNotFoundError|ImportError": "The nodes run another Python: see python, setup and container in the profile",
    r"NCCL": "The interface between the nodes may be another one: `interface` in the profile; cifarscale doctor",
    r"Too many open files": "Raise the limit with a line of the profile's setup: ulimit -n 65536",
    r"MemoryError|Cannot allocate memory": "Raise memory_gb in the profile, or take fewer --num-workers",
}
"""What to do about errors that are not our own, which say it themselves."""

"""Why a job is pending, what it is doing, or why it ended, and what to do."""

from dataclasses import replace

from cifarscale.explain.ended import failed, reported, why_ended
from cifarscale.explain.evidence import Evidence
from cifarscale.explain.explanation import Explanation, again, duration, end_of, how_far, last_lines_of
from cifarscale.explain.waiting import why_waiting
from cifarscale.slurm.job_log import deaths

SILENCE_S = 120
"""Without a line in the metrics for so long, and ten times as long as usual, a run looks stuck."""
STARTING_S = 300
"""What a start may take until the first line."""


def explain(seen: Evidence) -> Explanation:
    """What the evidence says of the job, or of a run that no job was queued for."""
    state = seen.state
    if seen.job is None:
        return _here(seen)
    if state is not None and state.is_waiting:
        return _pending(seen)
    if state is not None and state.is_active:
        return _running(seen)
    if seen.is_complete:
        return _complete(seen)
    if state is None:
        return _forgotten(seen)
    found = why_ended(seen)
    return replace(found, details=(*how_far(seen), *found.details))


def _pending(seen: Evidence) -> Explanation:
    state = seen.state
    assert state is not None
    job = state.job_id
    if state.state == "CONFIGURING":
        return Explanation(f"job {job} has its nodes ({state.nodes}), which are being made ready for it")
    code = state.reason or ("JobHeldUser" if "HOLD" in state.state else "")
    reason = why_waiting(code, state.restarts)
    details = []
    if state.start is not None:
        wait = (state.start - seen.now).total_seconds() if seen.now else 0
        when = f" (in {duration(wait)})" if wait > 0 else ""
        details.append(f"SLURM expects it to start at {state.start}{when}")
    else:
        details.append("SLURM does not tell yet when it will start")
    if state.restarts and seen.starts:
        last = seen.starts[-1]
        details.append(
            f"Start {len(seen.starts)} ended as {last.state} after {duration(last.elapsed_s)}{_reached(seen)}"
        )
    cause = f" ({code})" if code else ""
    headline = f"job {job} is pending{cause}: {reason.meaning}"
    return Explanation(headline, tuple(details), None, tuple(line.format(job=job) for line in reason.advice))


def _running(seen: Evidence) -> Explanation:
    state = seen.state
    assert state is not None
    headline = f"job {state.job_id} is {state.state.lower()} on {state.nodes}"
    details = [*([f"It started at {state.start}"] if state.start else []), *how_far(seen)]
    if state.restarts:
        details.append(f"It was queued again {_times(state.restarts)}")
    if seen.failures:
        first = seen.failures[0]
        headline += f", but rank {first.rank} on {first.host} has failed"
        ending = (f"If it does not end by itself:\ncifarscale cancel {seen.typed}",)
        return Explanation(headline, tuple(details), end_of(first), ending)
    if seen.silent_s is None or seen.max_steps is None or state.state != "RUNNING":
        return Explanation(headline, tuple(details))
    usual = seen.between_s
    details.append(
        f"Nothing new in its metrics for {duration(seen.silent_s)}"
        + (f"; usually there is a line every {duration(usual)}" if usual is not None and usual >= 1 else "")
    )
    limit = max(STARTING_S, SILENCE_S, 10 * (usual or 0)) if seen.step is None else max(SILENCE_S, 10 * (usual or 0))
    if seen.silent_s < limit:
        return Explanation(headline, tuple(details))
    advice = (
        f"An evaluation or a slow file server may take long. What it says:\ncifarscale logs {seen.typed}",
        f"What its processes do:\nsrun --jobid={state.job_id} --overlap --pty top",
        f"If it hangs, end it and submit it again:\ncifarscale cancel {seen.typed}",
    )
    return Explanation(f"{headline}, and looks stuck", tuple(details), last_lines_of(seen, 0), advice)


def _complete(seen: Evidence) -> Explanation:
    details = []
    if seen.state is not None and seen.job is not None:
        details.append(f"Job {seen.job.job_id} ended as {seen.state.state}")
        if seen.state.state != "COMPLETED":
            details.append("That came after the result was written; nothing is missing")
    return Explanation(f"{seen.run} is complete", tuple(details), None, (f"Its figures: {seen.run}/result.json",))


def _here(seen: Evidence) -> Explanation:
    """A run that no job was queued for."""
    if seen.is_complete:
        return _complete(seen)
    details = ("It was never submitted to SLURM", *how_far(seen))
    if seen.holder:
        return Explanation(f"{seen.run} is being written by {seen.holder}", details)
    if seen.failures:
        first = seen.failures[0]
        return reported(seen, first, f"{seen.run} failed", details)
    what = "has not begun" if seen.step is None else "was interrupted"
    return Explanation(f"{seen.run} {what}", details, None, again(seen))


def _forgotten(seen: Evidence) -> Explanation:
    assert seen.job is not None
    job = seen.job.job_id
    about = f"SLURM cannot be asked: {seen.trouble}" if seen.trouble else f"SLURM does not know job {job} any more"
    details = (about, f"It was submitted at {seen.job.submitted}", *how_far(seen))
    if seen.holder:
        return Explanation(f"{seen.run} is being written by {seen.holder}", details)
    if not seen.failures and not deaths(seen.log):
        headline = f"{seen.run} is not complete, and nothing tells why"
        return Explanation(headline, details, last_lines_of(seen, 0), again(seen))
    found = failed(seen)
    return replace(found, details=(*details, *found.details))


def _reached(seen: Evidence) -> str:
    return f", at step {seen.step:,}" if seen.step else ""


def _times(number: int) -> str:
    return "once" if number == 1 else f"{number} times"

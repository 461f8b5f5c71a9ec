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


def explain(evidence: Evidence) -> Explanation:
    """What the evidence says of the job, or of a run that no job was queued for."""
    state = evidence.state
    if evidence.job is None:
        return _here(evidence)
    if state is not None and state.is_waiting:
        return _pending(evidence)
    if state is not None and state.is_active:
        return _running(evidence)
    if evidence.is_complete:
        return _complete(evidence)
    if state is None:
        return _forgotten(evidence)
    ending = why_ended(evidence)
    return replace(ending, details=(*how_far(evidence), *ending.details))


def _pending(evidence: Evidence) -> Explanation:
    state = evidence.state
    assert state is not None
    job = state.job_id
    if state.state == "CONFIGURING":
        return Explanation(f"job {job} has its nodes ({state.nodes}), which are being made ready for it")
    code = state.reason or ("JobHeldUser" if "HOLD" in state.state else "")
    reason = why_waiting(code, state.restarts)
    details = []
    if state.start is not None:
        wait = (state.start - evidence.now).total_seconds() if evidence.now else 0
        when = f" (in {duration(wait)})" if wait > 0 else ""
        details.append(f"SLURM expects it to start at {state.start}{when}")
    else:
        details.append("SLURM does not tell yet when it will start")
    if state.restarts and evidence.started_attempts:
        last = evidence.started_attempts[-1]
        details.append(
            f"Start {len(evidence.started_attempts)} ended as {last.state} after "
            f"{duration(last.elapsed_s)}{_reached(evidence)}"
        )
    cause = f" ({code})" if code else ""
    headline = f"job {job} is pending{cause}: {reason.meaning}"
    return Explanation(headline, tuple(details), None, tuple(line.format(job=job) for line in reason.advice))


def _running(evidence: Evidence) -> Explanation:
    state = evidence.state
    assert state is not None
    headline = f"job {state.job_id} is {state.state.lower()} on {state.nodes}"
    details = [*([f"It started at {state.start}"] if state.start else []), *how_far(evidence)]
    if state.restarts:
        details.append(f"It was queued again {_times(state.restarts)}")
    if evidence.failures:
        first = evidence.failures[0]
        headline += f", but rank {first.rank} on {first.host} has failed"
        ending = (f"If it does not end by itself:\ncifarscale cancel {evidence.typed}",)
        return Explanation(headline, tuple(details), end_of(first), ending)
    if evidence.silent_s is None or evidence.max_steps is None or state.state != "RUNNING":
        return Explanation(headline, tuple(details))
    usual = evidence.between_s
    details.append(
        f"Nothing new in its metrics for {duration(evidence.silent_s)}"
        + (f"; usually there is a line every {duration(usual)}" if usual is not None and usual >= 1 else "")
    )
    limit = (
        max(STARTING_S, SILENCE_S, 10 * (usual or 0)) if evidence.step is None else max(SILENCE_S, 10 * (usual or 0))
    )
    if evidence.silent_s < limit:
        return Explanation(headline, tuple(details))
    advice = (
        f"An evaluation or a slow file server may take long. What it says:\ncifarscale logs {evidence.typed}",
        f"What its processes do:\nsrun --jobid={state.job_id} --overlap --pty top",
        f"If it hangs, end it and submit it again:\ncifarscale cancel {evidence.typed}",
    )
    return Explanation(f"{headline}, and looks stuck", tuple(details), last_lines_of(evidence, 0), advice)


def _complete(evidence: Evidence) -> Explanation:
    details = []
    if evidence.state is not None and evidence.job is not None:
        details.append(f"Job {evidence.job.job_id} ended as {evidence.state.state}")
        if evidence.state.state != "COMPLETED":
            details.append("That came after the result was written; nothing is missing")
    return Explanation(
        f"{evidence.run} is complete", tuple(details), None, (f"Its metrics: {evidence.run}/result.json",)
    )


def _here(evidence: Evidence) -> Explanation:
    """A run that no job was queued for."""
    if evidence.is_complete:
        return _complete(evidence)
    details = ("It was never submitted to SLURM", *how_far(evidence))
    if evidence.holder:
        return Explanation(f"{evidence.run} is being written by {evidence.holder}", details)
    if evidence.failures:
        first = evidence.failures[0]
        return reported(evidence, first, f"{evidence.run} failed", details)
    what = "has not begun" if evidence.step is None else "was interrupted"
    return Explanation(f"{evidence.run} {what}", details, None, again(evidence))


def _forgotten(evidence: Evidence) -> Explanation:
    assert evidence.job is not None
    job = evidence.job.job_id
    answer = (
        f"SLURM cannot be asked: {evidence.trouble}" if evidence.trouble else f"SLURM does not know job {job} any more"
    )
    details = (answer, f"It was submitted at {evidence.job.submitted}", *how_far(evidence))
    if evidence.holder:
        return Explanation(f"{evidence.run} is being written by {evidence.holder}", details)
    if not evidence.failures and not deaths(evidence.log):
        headline = f"{evidence.run} is not complete, and nothing tells why"
        return Explanation(headline, details, last_lines_of(evidence, 0), again(evidence))
    ending = failed(evidence)
    return replace(ending, details=(*details, *ending.details))


def _reached(evidence: Evidence) -> str:
    return f", at step {evidence.step:,}" if evidence.step else ""


def _times(number: int) -> str:
    return "once" if number == 1 else f"{number} times"

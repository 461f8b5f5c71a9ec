"""Where the hours of a run went, and what it should have asked for."""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from cifarscale.config.recipe import TrainingRecipe
from cifarscale.errors import RunError
from cifarscale.explain.ended import memory_per_node
from cifarscale.explain.explanation import duration
from cifarscale.runs.run_folder import RunFolder
from cifarscale.slurm import client as slurm
from cifarscale.slurm.client import Attempt
from cifarscale.slurm.submitted import submissions
from cifarscale.tracking.metrics import RATE_OF_RANK, read_metrics

MARGIN = 1.25
"""What a request has beyond what was used."""
ENOUGH_S = 120
"""Of computing, before anything is suggested: SLURM measures memory every half a minute, and a start is no sample."""
MUCH_WAITING = 0.05
"""Part of the training in which it waits for data, above which that is worth a change."""
SLOW = 0.8
"""Of the other ranks' pace, below which one is named."""
WASTEFUL = 0.6
"""Part of what was asked for, below which less is suggested."""


@dataclass(frozen=True)
class Goodput:
    """Where the time of a run went, over all attempts of all its jobs, in seconds. What is not known is None.

    Attributes:
        queued: from being ready to run, or being queued again, to the start.
        allocated: with nodes.
        computing: in training steps that count, but for waiting for data.
        waiting_for_data: in training steps that count.
        starting: from a start to the first step.
        between_steps: evaluations, checkpoints and, of a complete run, the final metrics.
        lost: in steps that were computed again, or in attempts of which nothing remains.
        num_attempts: how often SLURM has started it.
        silent: since the newest line of a run that is not complete: steps since then, an evaluation, or a hang.
    """

    queued: float
    allocated: float
    computing: float
    waiting_for_data: float
    starting: float | None
    between_steps: float | None
    lost: float | None
    num_attempts: int
    silent: float | None = 0.0

    @property
    def total(self) -> float:
        return self.queued + self.allocated


@dataclass(frozen=True)
class Usage:
    """What the newest attempt that was long enough used, and what it was given. What SLURM does not tell is None.

    Attributes:
        memory_gb: of a node, at most.
        busy_cores: of a task, on average.
    """

    memory_gb: float | None
    requested_memory_gb: float | None
    busy_cores: float | None
    cores: float | None
    time_limit_s: float | None


@dataclass(frozen=True)
class _Span:
    """An attempt of a job with the lines of the log that remain of it."""

    begin: float
    end: float
    goes_on: bool
    lines: list[Mapping[str, Any]]


def goodput(
    attempts: Sequence[Attempt], lines: Sequence[Mapping[str, Any]], now: float, is_complete: bool = True
) -> Goodput:
    """Where the time of a run went.

    Args:
        attempts: of all its jobs, from the accounting; steps are passed over.
        lines: of metrics.jsonl. Lines that were written again are in it once, as the last attempt wrote them.
        now: seconds since 1970, for a job that runs.
    """
    trained = [line for line in lines if "seconds" in line]
    waited = float(trained[-1].get("data_seconds", 0.0)) if trained else 0.0
    computing = float(trained[-1]["seconds"]) - waited if trained else 0.0
    spans: list[_Span] = []
    before: dict[str, float] = {}
    queued = 0.0
    without_steps = (attempt for attempt in attempts if not attempt.step)
    for attempt in sorted(without_steps, key=lambda attempt: _stamp(attempt.start) or math.inf):
        begin = _stamp(attempt.start)
        ready = before.get(attempt.job_id) or _stamp(attempt.eligible) or _stamp(attempt.submit)
        stop = begin or _stamp(attempt.end) or now  # it still waits, or was cancelled before it began
        queued += max(0.0, stop - (ready or stop))
        if begin is None:
            continue
        end = _stamp(attempt.end) or now
        before[attempt.job_id] = end
        own = [line for line in trained if begin <= line.get("time", 0) <= end]
        spans.append(_Span(begin, end, attempt.end is None, own))
    allocated = sum(span.end - span.begin for span in spans)
    if not all("time" in line for line in trained):  # a run before lines had a time
        return Goodput(queued, allocated, computing, waited, None, None, None, len(spans), None)
    starting, between, lost, rest = _overhead(spans)
    final, silent = (rest, 0.0) if is_complete else (0.0, rest)
    return Goodput(queued, allocated, computing, waited, starting, between + final, lost, len(spans), silent)


def _overhead(spans: Sequence[_Span]) -> tuple[float, float, float, float]:
    """Seconds of starting, between steps, lost, and after the newest line."""
    newest = 0.0
    starting = between = lost = counted = 0.0
    for span in spans:
        if not span.lines:
            starting += (span.end - span.begin) if span.goes_on else 0.0
            lost += 0.0 if span.goes_on else span.end - span.begin
            continue
        first, last = span.lines[0], span.lines[-1]
        to_first = first["time"] - span.begin
        computed = min(to_first, max(0.0, first["seconds"] - counted))
        counted = last["seconds"]
        starting += to_first - computed
        between += max(0.0, last["time"] - first["time"] - (last["seconds"] - first["seconds"]))
        rest = span.end - last["time"]
        newest = rest if span is spans[-1] else 0.0
        lost += 0.0 if span is spans[-1] else rest
    return starting, between, lost, newest


def usage(attempts: Sequence[Attempt]) -> Usage | None:
    """Of the newest attempt that ran for ENOUGH_S; None if there is none.

    Args:
        attempts: each followed by its steps.
    """
    begins = [i for i, attempt in enumerate(attempts) if not attempt.step]
    for i in reversed(begins):
        attempt = attempts[i]
        if attempt.start is None or attempt.elapsed_s < ENOUGH_S:
            continue
        end = next((j for j in begins if j > i), len(attempts))
        steps = attempts[i + 1 : end]
        used, requested = memory_per_node(attempt, steps)
        ranks = next((step for step in steps if step.step.isdigit() and step.tasks), None)
        busy = cores = None
        if ranks is not None:
            cores = attempt.cpus / ranks.tasks
            if ranks.end is not None and ranks.cpu_s and ranks.elapsed_s:
                busy = ranks.cpu_s / ranks.elapsed_s / ranks.tasks
        limit = None if attempt.time_limit_min is None else 60.0 * attempt.time_limit_min
        return Usage(used, requested, busy, cores, limit)
    return None


def better_request(
    times: Goodput, used: Usage | None, step: int, max_steps: int, pace: float | None, is_complete: bool
) -> list[tuple[str, str]]:
    """What to ask for instead, by what: rows to show. None of what too little is known of.

    Args:
        pace: steps a second, of training alone.
    """
    if times.computing + times.waiting_for_data < ENOUGH_S or used is None:
        return [("better request", f"not known before it has trained for {duration(ENOUGH_S)} in one start")]
    rows = []
    if text := _better_time(times, used, step, max_steps, pace, is_complete):
        rows.append(("better time", text))
    if used.memory_gb is not None:
        wanted = math.ceil(MARGIN * used.memory_gb)
        asked = used.requested_memory_gb
        text = f"uses {used.memory_gb:.1f} GB a node"
        if asked is None:
            text += f"; memory_gb = {wanted} would do"
        elif wanted < WASTEFUL * asked or wanted > asked:
            text += f" of {asked:.1f}; memory_gb = {wanted} would do"
        else:
            text += f" of {asked:.1f}, which is right"
        rows.append(("better memory", text))
    if used.busy_cores is not None and used.cores is not None:
        wanted = max(1, math.ceil(MARGIN * used.busy_cores))
        text = f"keeps {used.busy_cores:.1f} of {used.cores:g} cores a task busy"
        text += f"; cpus_per_task = {wanted} would do" if wanted < WASTEFUL * used.cores else ", which is right"
        rows.append(("better cores", text))
    trained = times.computing + times.waiting_for_data
    if times.waiting_for_data > MUCH_WAITING * trained:
        rows.append(("better reading", "more --num-workers, or --set data.reader=in_memory (another run)"))
    rows.append(("rests on", f"{duration(trained)} of training, {step:,} steps, {_count(times.num_attempts, 'start')}"))
    return rows


def _better_time(
    times: Goodput, used: Usage, step: int, max_steps: int, pace: float | None, is_complete: bool
) -> str | None:
    if not pace or not step:
        return None
    trained = times.computing + times.waiting_for_data
    beside = (times.starting or 0) / max(1, times.num_attempts) + (times.between_steps or 0) * max_steps / step
    whole = (max_steps if is_complete else max_steps - step) / min(pace, step / trained) + beside
    wanted_min = 5 * math.ceil(MARGIN * whole / 300)
    what = "in one go it takes" if is_complete else "the rest takes"
    text = f"{what} about {duration(whole)}"
    limit = used.time_limit_s
    if limit is None or 60 * wanted_min < WASTEFUL * limit or (whole > limit and times.num_attempts > 1):
        return f"{text}; --time {wanted_min // 60:02d}:{wanted_min % 60:02d}:00 would do"
    return f"{text}; the limit of {duration(limit)} is right" if whole <= limit else f"{text}, in several starts"


def rows(times: Goodput) -> list[tuple[str, str]]:
    """What to show of it."""
    parts: list[tuple[str, float | None]] = [
        ("queued", times.queued),
        ("computing", times.computing),
        ("waiting for data", times.waiting_for_data),
        ("starting", times.starting),
        ("evaluating, saving", times.between_steps),
        ("lost to restarts", times.lost),
        ("since its last line", times.silent or None),
    ]
    if times.lost is None:
        rest = max(0.0, times.allocated - times.computing - times.waiting_for_data)
        parts = [*parts[:3], ("starting, evaluating, lost", rest)]
    total = times.total or 1.0
    shown = [(name, f"{duration(value)}, {value / total:.1%}") for name, value in parts if value is not None]
    return [*shown, ("total", f"{duration(times.total)}, in {_count(times.num_attempts, 'start')}")]


def slow_rank(lines: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """The rank that the others wait for, if its own pace in the newest line of the log is well below theirs."""
    line: Mapping[str, Any] = next((line for line in reversed(lines) if "images_per_second" in line), {})
    rates = {int(key.removeprefix(RATE_OF_RANK)): rate for key, rate in line.items() if key.startswith(RATE_OF_RANK)}
    if len(rates) < 2:
        return []
    slowest = min(rates, key=rates.__getitem__)
    others = median(rate for rank, rate in rates.items() if rank != slowest)
    if rates[slowest] >= SLOW * others:
        return []
    return [("slowest rank", f"rank {slowest}, at {rates[slowest] / others:.0%} of the others' pace; all wait for it")]


def goodput_rows(run_dir: Path) -> list[tuple[str, str]]:
    """Where the hours of a run went, and what a better request would be: names and values to show.

    Raises: RunError if it was never submitted, or trains nothing; ClusterError if SLURM cannot be asked.
    """
    folder = RunFolder(run_dir)
    jobs = submissions(run_dir)
    if not jobs:
        raise RunError(f"{run_dir} was never submitted to SLURM, whose accounts tell where its hours went")
    recipe = folder.load_recipe()
    if not isinstance(recipe, TrainingRecipe):
        raise RunError(f"{run_dir} trains nothing, so there is no goodput of it")
    attempts = [attempt for job in jobs for attempt in slurm.attempts(job.key)]
    lines = read_metrics(folder.metrics)
    complete = folder.result() is not None
    times = goodput(attempts, lines, time.time(), complete)
    rates = [line["images_per_second"] for line in lines if line.get("images_per_second")]
    pace = median(rates[-20:]) / recipe.samples_per_step if rates else None
    step = max((line["step"] for line in lines), default=0)
    shown = rows(times) + slow_rank(lines)
    return shown + better_request(times, usage(attempts), step, recipe.training.max_steps, pace, complete)


def _stamp(moment: Any) -> float | None:
    """SLURM's time, which is local, in seconds since 1970."""
    return None if moment is None else float(moment.timestamp())


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"

"""What is told of a job, and the parts that many tellings share."""

import shlex
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass

from cifarscale.explain.evidence import Evidence
from cifarscale.launch.failures import Failure
from cifarscale.slurm.job_log import by_the_program

NUM_QUOTED = 8
"""Last lines of a rank that are shown."""


@dataclass(frozen=True)
class Quote:
    """Lines that a rank left."""

    title: str
    lines: tuple[str, ...]


@dataclass(frozen=True, repr=False)
class Explanation:
    """What became of a job.

    Attributes:
        headline: it in one line.
        advice: what to do; a command stands on a line of its own.
    """

    headline: str
    details: tuple[str, ...] = ()
    quote: Quote | None = None
    advice: tuple[str, ...] = ()

    def __str__(self) -> str:
        return "\n".join(self._lines())

    __repr__ = __str__  # what a notebook shows

    def _lines(self) -> Iterator[str]:
        yield _wrapped(self.headline, "", "")
        for detail in self.details:
            yield _wrapped(detail, "  ", "    ")
        if self.quote is not None:
            yield f"\n{self.quote.title}:"
            yield from (f"  | {line}" for line in self.quote.lines)
        if self.advice:
            yield "\nwhat to do:"
        for advice in self.advice:
            text, *commands = advice.splitlines()
            yield _wrapped(text, "  - ", "    ")
            yield from (f"      {command}" for command in commands)


def _wrapped(text: str, first: str, other: str) -> str:
    return textwrap.fill(text, 78, initial_indent=first, subsequent_indent=other, break_on_hyphens=False)


def duration(seconds: float) -> str:
    """In the two units that matter: 3 h 20 min."""
    whole = round(seconds)
    for unit, size, smaller, parts in (("d", 86_400, "h", 3600), ("h", 3600, "min", 60), ("min", 60, "s", 1)):
        if whole >= size:
            rest = whole % size // parts
            return f"{whole // size} {unit}" + (f" {rest} {smaller}" if rest else "")
    return f"{whole} s"


def how_far(evidence: Evidence) -> tuple[str, ...]:
    """The step that the run has come to."""
    if evidence.max_steps is None:
        return ()
    return (f"It has come to step {evidence.step or 0:,} of {evidence.max_steps:,}",)


def again(evidence: Evidence) -> tuple[str, ...]:
    """The command that was typed."""
    if evidence.job is None:
        return (f"The same command goes on, or:\ncifarscale train {shlex.quote(f'{evidence.run}/recipe.toml')}",)
    goes_on = "it goes on from its newest checkpoint" if evidence.step else "it begins again"
    return (f"Submit it again, and {goes_on}:\n{shlex.join(['cifarscale', *evidence.job.command[1:]])}",)


def in_profile(evidence: Evidence) -> str:
    """Where a setting of the job stands."""
    return f" in profile {evidence.job.profile}" if evidence.job and evidence.job.profile else " in the profile"


def end_of(failure: Failure) -> Quote | None:
    """The end of a traceback; our own errors say all in their message."""
    if failure.expected:
        return None
    lines = tuple(line for line in failure.traceback.splitlines() if line.strip(" ^~"))[-NUM_QUOTED:]
    return Quote(f"last lines of rank {failure.rank}", lines)


def last_lines_of(evidence: Evidence, rank: int) -> Quote | None:
    """What a rank printed last; None if it printed nothing."""
    lines = tuple(by_the_program(evidence.log if rank == 0 and evidence.log else evidence.tail(rank)))[-NUM_QUOTED:]
    return Quote(f"last lines of rank {rank}", lines) if lines else None

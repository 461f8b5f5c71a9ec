"""What SLURM writes into a job's log: which task died first and how, and what SLURM itself did to the job."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

_STARTED = "Starting with JobEnvironment("
_DEATH = re.compile(r"srun: error: (?P<node>\S+): tasks? (?P<ranks>[\d,-]+): (?P<how>.+)")
_COMPLAINT = re.compile(r"(?:srun|slurmstepd(?:-\S+)?): (?:error|fatal): (?P<what>.+)")
_CONSEQUENCE = re.compile(r".*(?:CANCELLED AT(?!.*DUE TO)|Unable to confirm|Timed out waiting for job step)")
"""srun ends the other tasks after the first one's death."""


@dataclass(frozen=True)
class Death:
    """Tasks of one node that ended badly.

    Attributes:
        how: in srun's words: `Killed`, `Segmentation fault`, `Out Of Memory`, `Exited with exit code 1`, …
    """

    ranks: tuple[int, ...]
    node: str
    how: str

    @property
    def is_by_signal(self) -> bool:
        return not self.how.startswith("Exited")


def newest_attempt(lines: Sequence[str]) -> list[str]:
    """The lines of the last time that the job was started: all of them if its tasks never came to run."""
    begin = max((i for i, line in enumerate(lines) if _STARTED in line), default=0)
    return list(lines[begin:])


def ranks_started(lines: Sequence[str]) -> bool:
    """Whether the job's script came as far as a rank's Python."""
    return any(_STARTED in line for line in lines)


def deaths(lines: Sequence[str]) -> list[Death]:
    """Tasks that ended badly, in the order in which srun saw it: the first one made it end the others."""
    matches = (_DEATH.match(line) for line in lines)
    return [Death(_ranks(match["ranks"]), match["node"], match["how"].strip()) for match in matches if match]


def said_by_slurm(lines: Sequence[str]) -> list[str]:
    """What else srun and the daemons of the nodes complained of, each once."""
    matches = (_COMPLAINT.match(line) for line in lines if not _DEATH.match(line) and not _CONSEQUENCE.match(line))
    return list(dict.fromkeys(match["what"].strip(" *") for match in matches if match))


def by_the_program(lines: Sequence[str]) -> list[str]:
    """What is left of a log without SLURM's lines and submitit's."""
    return [line for line in lines if line.strip() and not re.match(r"(?:srun|slurmstepd\S*|submitit \w+)\b", line)]


def _ranks(text: str) -> tuple[int, ...]:
    """Of `0-2,5`."""
    ranks: list[int] = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        ranks.extend(range(int(first), int(last or first) + 1))
    return tuple(ranks)

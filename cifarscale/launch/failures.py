"""What a rank that fails leaves behind, and which of several ranks failed first."""

import json
import os
import re
import socket
import traceback
from dataclasses import asdict, dataclass
from pathlib import Path

from cifarscale.errors import EXIT_ERROR, CifarscaleError, noted_time
from cifarscale.runs.files import write_json_atomically

_LOST_RANK = re.compile(r"(closed|reset) by peer|[Bb]roken pipe|remote process exited")
LOGS_VARIABLE = "CIFARSCALE_LOGS"
"""Names the folder where the ranks of this start leave their failures."""


@dataclass(frozen=True)
class Failure:
    """An error that ended a rank.

    Attributes:
        time: seconds since 1970.
        expected: one of our own errors, whose message says all.
    """

    rank: int
    host: str
    time: float
    message: str
    expected: bool
    exit_code: int
    traceback: str


def report_failure(error: Exception) -> int:
    """Leaves the error of this rank for whoever started it. Returns: the exit code to end with."""
    expected = isinstance(error, CifarscaleError)
    failure = Failure(
        rank=int(os.environ["RANK"]),
        host=os.environ.get("SLURMD_NODENAME") or socket.gethostname(),
        time=noted_time(error),
        message=str(error) if expected else f"{type(error).__name__}: {error}",
        expected=expected,
        exit_code=error.exit_code if isinstance(error, CifarscaleError) else EXIT_ERROR,
        traceback="".join(traceback.format_exception(error)),
    )
    write_json_atomically(_report(Path(os.environ[LOGS_VARIABLE]), failure.rank), asdict(failure))
    return failure.exit_code


def failures(logs: Path) -> list[Failure]:
    """What the ranks have left, the cause first.

    That is one of our own errors, which say what is wrong; else the earliest one that is not of a lost connection, as
    the other ranks have when one ends.
    """
    reports = [Failure(**json.loads(path.read_text(encoding="utf-8"))) for path in logs.glob("rank-*.error.json")]
    return sorted(
        reports, key=lambda failure: (not failure.expected, bool(_LOST_RANK.search(failure.message)), failure.time)
    )


def forget_failures(logs: Path) -> None:
    """Removes what an earlier start has left."""
    for old in logs.glob("rank-*.error.json"):
        old.unlink()


def _report(logs: Path, rank: int) -> Path:
    return logs / f"rank-{rank}.error.json"

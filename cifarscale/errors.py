"""The errors that users see, and the exit codes that scripts rely on.

Every message says what happened, the value received, what is valid, and what to run next, in one line.
"""

import re
import shlex
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar

TRUST_VARIABLE = "CIFARSCALE_TRUST_CODE"
"""Digests of code that whoever started this process trusts, apart by commas; `all` for any."""
EXIT_ERROR = 1
EXIT_INTERRUPTED = 75
"""The run was asked to stop, saved a checkpoint, and resumes when the same command runs again (EX_TEMPFAIL)."""
EXIT_CONTINUE_LATER = 77
"""A rank of a SLURM job was warned and has saved; the job's script queues the job again."""
EXIT_LEFT_AT_ONCE = 76
"""A second Ctrl-C ended the run without saving; its last checkpoint stands."""


def note_time(error: Exception) -> None:
    """Notes that an error is met now; the earliest note stands."""
    if not hasattr(error, "met_at"):
        error.met_at = time.time()  # type: ignore[attr-defined]


def noted_time(error: Exception) -> float:
    """When an error was met, in seconds since 1970; now, where nobody has noted it."""
    return float(getattr(error, "met_at", time.time()))


class CifarscaleError(Exception):
    """Base of all errors that the command line prints as one line, without a traceback."""

    exit_code: ClassVar[int] = EXIT_ERROR
    details = ""
    """Lines that stand below that one: commands to choose from."""


class ConfigError(CifarscaleError):
    """A recipe, or a setting in it, is not valid."""


class TooManyRanksError(ConfigError):
    """A global batch has nothing for some of the ranks."""


class DataError(CifarscaleError):
    """A data set, shard or manifest is missing, damaged, or not the one that was asked for."""


class RunError(CifarscaleError):
    """A run folder cannot be used for what was asked."""


class CheckpointError(RunError):
    """No usable checkpoint, or one that belongs to something else."""


class DistributedError(CifarscaleError):
    """The processes of a job could not find or agree with each other."""


class ClusterError(CifarscaleError):
    """SLURM is not there, cannot do what was asked, or refused it."""


class NonFiniteLossError(CifarscaleError):
    """Training diverged: a loss was infinite or not a number."""


class EvaluationError(CifarscaleError):
    """A metric cannot be computed from what was given."""


class Interrupted(CifarscaleError):
    """The run was asked to stop; it saved its state at a step boundary.

    Attributes:
        to_continue: whether it was warned that its time is up, and is to go on in a new allocation.
    """

    exit_code: ClassVar[int] = EXIT_INTERRUPTED

    def __init__(self, message: str, to_continue: bool = False) -> None:
        super().__init__(message)
        self.to_continue = to_continue


def text_of(error: BaseException) -> str:
    """What an error says; empty for one of somebody's own that cannot say it."""
    try:
        return str(error)
    except Exception:
        return ""


def first_line(error: BaseException) -> str:
    """The first line of what an error says; empty where it says nothing."""
    return next(iter(text_of(error).strip().splitlines()), "")


def in_one_line(error: BaseException) -> str:
    """The type of an error, and the first line of what it says."""
    first = first_line(error)
    return f"{type(error).__name__}: {first}" if first else type(error).__name__


def is_want_of_memory(error: BaseException) -> bool:
    """Whether torch, or Python, has no memory left."""
    wants = re.search("out of memory|can't allocate memory", text_of(error))
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and wants is not None)


def typed(path: Path | str) -> str:
    """A path as one types it in a shell."""
    return shlex.quote(str(path))


@contextmanager
def writing_to(path: Path) -> Iterator[None]:
    """Turns an operating system's refusal to write below `path` into one clear line."""
    try:
        yield
    except OSError as error:
        where = error.filename or path
        raise CifarscaleError(
            f"cannot write {where}: {error.strerror or error}. "
            "Free some space, or name a folder that you may write to, then run the same command again."
        ) from error


def short_path(path: Path) -> str:
    """A path as one would type it here."""
    here = Path.cwd()
    return str(path.relative_to(here)) if here in path.parents else str(path)

"""What every rank of a job runs, as plain data that crosses to another process or into a queue."""

import logging
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Call:
    """What each rank calls.

    Attributes:
        function: as MODULE:NAME.
        arguments: plain values.
        command: what the user typed, for the run's environment.json.
        debug: whether debug messages are shown.
    """

    function: str
    arguments: dict[str, Any]
    command: list[str] = field(default_factory=lambda: list(sys.argv))
    debug: bool = field(default_factory=lambda: logging.getLogger("cifarscale").isEnabledFor(logging.DEBUG))


def typed_command() -> list[str] | None:
    """What the user typed; None in a script or a notebook, whose arguments are no command of ours."""
    program = Path(sys.argv[0])
    is_ours = program.name == "cifarscale" or program.parts[-2:] == ("cifarscale", "__main__.py")
    return list(sys.argv) if is_ours else None

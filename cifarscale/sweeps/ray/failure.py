"""What ended a trial, in words of ours."""

from pathlib import Path
from typing import Any

_SAID_BY_RAY = {
    "low on memory": "Ray ended its process, since the node ran low on memory",
    "process has died": "its process died: it was killed, or ran out of memory",
    "actor died": "its process died: it was killed, or ran out of memory",
}


def failure_of(ray_trial: Any) -> str:
    """What ended a trial the last time, in one line."""
    # Not `get_error`, which looks where the file is copied to later.
    path = Path(ray_trial.error_file or "")
    return cause_in(path.read_text(encoding="utf-8", errors="replace")) if path.is_file() else "its process ended"


def cause_in(text: str) -> str:
    """The cause of the last failure in a trial's error.txt, where Ray writes a traceback, or why an actor died."""
    last = text.rpartition("Failure # ")[2]
    for words, ours in _SAID_BY_RAY.items():
        if words in last:
            return ours
    lines = [line.strip() for line in last.splitlines() if line.strip()]
    return lines[-1] if lines else "its process ended"

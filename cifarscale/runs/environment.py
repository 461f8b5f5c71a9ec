"""What a result may depend on beside the recipe: versions, commit, machine."""

import os
import platform
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cifarscale import __version__

_PACKAGE = Path(__file__).resolve().parents[1]


def describe_environment(torch_version: str, device: str, world_size: int) -> dict[str, Any]:
    """The environment of this process, for environment.json.

    Args:
        device: as people call it.
    """
    return {
        "cifarscale": __version__,
        "python": platform.python_version(),
        "torch": torch_version,
        "command": sys.argv,
        "git": git_state(),
        "host": platform.node(),
        "device": device,
        "world_size": world_size,
        "slurm_job_id": os.environ.get("SLURM_JOB_ID"),
        "started": datetime.now(UTC).isoformat(timespec="milliseconds"),
    }


def git_state() -> dict[str, Any] | None:
    """Commit and dirty flag of the checkout that this package runs from, None outside one."""

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", *arguments], cwd=_PACKAGE, capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", str(Path(__file__).resolve().relative_to(_PACKAGE)))
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain", "--", "."))}
    except (OSError, subprocess.CalledProcessError):
        return None

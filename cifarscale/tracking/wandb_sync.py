"""Uploading what W&B wrote while it was offline, by W&B's own `wandb sync`."""

import json
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from cifarscale.config.load import load_training_recipe
from cifarscale.errors import CifarscaleError, ConfigError, RunError, typed
from cifarscale.runs.lease import living_holder
from cifarscale.tracking.wandb_folder import WandbFolder
from cifarscale.tracking.wandb_mode import is_installed, why_unreachable

if TYPE_CHECKING:
    from cifarscale.tracking.wandb_sink import Media


def runs_to_upload(folders: Iterable[Path], untracked_too: bool = False) -> list[Path]:
    """The run folders that W&B writes to: among these, and among the trials of the sweeps in these.

    Args:
        untracked_too: also those that have metrics, and of which W&B was not told, or whose `wandb/` is lost.
    """
    candidates = (run for folder in folders for run in (folder, *sorted(folder.glob("trials/*"))))
    return [
        run
        for run in candidates
        if WandbFolder(run).id.is_file() or (untracked_too and (run / "metrics.jsonl").is_file())
    ]


def require_server() -> None:
    """Raises: ConfigError or CifarscaleError for what keeps uploads from succeeding."""
    if not is_installed():
        raise ConfigError("wandb is not installed. Run: pip install 'cifarscale[wandb]'")
    from cifarscale.tracking.wandb_sink import server_address

    if reason := why_unreachable(server_address()):
        raise CifarscaleError(f"nothing is uploaded: {reason}. What is there stays; run cifarscale sync again")


def sync_run(run_dir: Path, media: "Media") -> bool:
    """Uploads a run as a whole, which takes the place of what W&B's server has of it.

    Returns: False if the server has all of it.
    Raises: RunError if the run is still written; CifarscaleError if the upload fails, and may be tried again.
    """
    folder = WandbFolder(run_dir)
    if folder.uploaded.is_file():
        return False
    if holder := living_holder(run_dir / ".lease"):
        raise RunError(
            f"{run_dir} is being written by {holder}; run cifarscale sync {typed(run_dir)} when it has ended"
        )
    file = folder.offline_file()
    if file is None:  # the upload of an online run was cut short, or W&B was not told of the run
        from cifarscale.tracking.wandb_sink import rebuild_offline

        path = run_dir / "result.json"
        result = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
        rebuild_offline(folder, load_training_recipe(str(run_dir / "recipe.toml"), of_run=True), result, media)
        file = folder.offline_file()
        assert file is not None
    _upload(file)
    folder.uploaded.touch()
    return True


def _upload(file: Path) -> None:
    done = file.with_name(f"{file.name}.synced")
    command = [sys.executable, "-m", "wandb", "sync", "--include-synced", str(file)]
    here = {"WANDB_MODE": "online", "WANDB_SILENT": "false", "WANDB_DIR": str(file.parents[2].absolute())}
    environment = {"WANDB_ERROR_REPORTING": "false"} | os.environ | here
    done.unlink(missing_ok=True)
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if not done.is_file():
        lines = [line for line in (ended.stderr + ended.stdout).splitlines() if line.strip()]
        raise CifarscaleError(f"W&B does not take {file}: {lines[-1] if lines else 'no reason is given'}")

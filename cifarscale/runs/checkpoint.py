"""Checkpoints: one file each, whole or absent, whose name carries its checksum."""

import hashlib
import io
import logging
from pathlib import Path
from typing import Any

import torch

from cifarscale.errors import CheckpointError
from cifarscale.runs.checkpoint_files import checkpoint_files, file_name
from cifarscale.runs.files import write_atomically

log = logging.getLogger(__name__)


def save_checkpoint(folder: Path, step: int, state: dict[str, Any], keep: int) -> Path:
    """Writes the state after `step` optimisation steps, then removes all but the newest `keep` checkpoints.

    What a killed process has left half written goes too, and damaged ones of later steps, which were passed over.

    Raises: CifarscaleError if the disk is full; the checkpoints that are there stay.
    """
    buffer = io.BytesIO()
    torch.save(state, buffer)
    content = buffer.getvalue()
    path = folder / file_name(step, _digest(content))
    write_atomically(path, lambda file: file.write(content))
    checkpoints = checkpoint_files(folder)
    damaged = [other for at, other in checkpoints if at >= step and other != path and not _is_whole(other)]
    others = [other for _, other in checkpoints if other not in damaged][keep:]
    for old in (*folder.glob(".step-*.tmp"), *damaged, *others):
        old.unlink(missing_ok=True)
    return path


def newest_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint whose bytes are those that were written; damaged ones are passed over with a warning."""
    damaged: list[str] = []
    for step, path in checkpoint_files(folder):
        if _is_whole(path):
            if damaged:
                log.warning(
                    "%s: damaged: %s. Taken is the one before, of step %s", folder, ", ".join(damaged), f"{step:,}"
                )
            return path
        damaged.append(path.name)
    if damaged:
        log.warning("%s: all checkpoints are damaged: %s", folder, ", ".join(damaged))
    return None


def load_checkpoint(path: Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """The state in a checkpoint: tensors and plain values only, no code is run.

    Raises: CheckpointError if it cannot be read.
    """
    try:
        state: dict[str, Any] = torch.load(path, map_location=device, weights_only=True)
    except Exception as error:
        raise CheckpointError(f"cannot read checkpoint {path}: {str(error).splitlines()[0]}") from error
    return state


def _is_whole(path: Path) -> bool:
    return _digest(path.read_bytes()) == path.name.split(".")[1]


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:12]

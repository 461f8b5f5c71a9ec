"""Checkpoints by the names of their files, `step-STEP.CHECKSUM.pt`; whoever only asks for these needs no torch."""

import re
from pathlib import Path

_NAME = re.compile(r"step-(\d{8})\.([0-9a-f]{12})\.pt")


def file_name(step: int, checksum: str) -> str:
    """The name of the file of a checkpoint."""
    return f"step-{step:08d}.{checksum}.pt"


def checkpoint_files(folder: Path) -> list[tuple[int, Path]]:
    """All checkpoints of a folder by their step, newest first; some may be damaged."""
    if not folder.is_dir():
        return []
    files = [(int(match[1]), path) for path in folder.iterdir() if (match := _NAME.fullmatch(path.name))]
    return sorted(files, reverse=True)


def checkpoint_step(path: Path) -> int:
    """The step that a checkpoint's name says."""
    return int(path.name[5:13])

"""Files that are written whole or not at all."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from cifarscale.errors import writing_to


def is_listed(path: Path) -> bool:
    """Whether a file is there. Listing its folder has a file server look again, where a lookup may be remembered."""
    try:
        return path.name in os.listdir(path.parent)
    except (FileNotFoundError, NotADirectoryError):
        return False


def write_atomically(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Calls `write` with an open binary file and puts the result at `path` in one step.

    A reader sees the old file or the new one, never a part; a failure leaves the old one.

    Raises: CifarscaleError if the disk is full or the folder cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with writing_to(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with temporary.open("wb") as file:
                write(file)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


def write_text_atomically(path: Path, text: str) -> None:
    """`write_atomically` for text, in UTF-8."""
    write_atomically(path, lambda file: file.write(text.encode()))


def write_json_atomically(path: Path, value: Any) -> None:
    """`write_atomically` for JSON: indented, keys in the order given; NaN is refused."""
    write_text_atomically(path, json.dumps(value, indent=2, allow_nan=False) + "\n")

"""Files: those that come with the package, and those that are written whole or not at all."""

import json
import os
import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from cifarscale.errors import CifarscaleError

_PACKAGE = Path(__file__).resolve().parent


def bundled_folders(name: str) -> tuple[Path, ...]:
    """Folders of that name that came with the package: within it where it was installed, else in the checkout."""
    return tuple(folder for folder in (_PACKAGE / "_bundled" / name, _PACKAGE.parent / name) if folder.is_dir())


def is_listed(path: Path) -> bool:
    """Whether a file is there. Listing its folder has a file server look again, where a lookup may be remembered."""
    try:
        return path.name in os.listdir(path.parent)
    except (FileNotFoundError, NotADirectoryError):
        return False


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

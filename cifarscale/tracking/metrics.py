"""metrics.jsonl: one JSON object a line, each with its step; readable while the run goes on."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cifarscale.errors import writing_to
from cifarscale.runs.files import write_text_atomically

_TIMES = ("time", "seconds", "data_seconds", "images_per_second", "gpu_memory_gb")
RATE_OF_RANK = "images_per_second_rank_"
"""Stands before a rank's number."""


def differs(key: str) -> bool:
    """Whether this metric differs between two runs that compute the same: a time, a rate, what a GPU held."""
    return key in _TIMES or key.startswith(RATE_OF_RANK)


class MetricsLog:
    """The sink that is always there: a line for each report, in one write."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Raises: CifarscaleError if the disk is full."""
        line = json.dumps({"step": step, **values}, allow_nan=False) + "\n"
        with writing_to(self._path), self._path.open("a", encoding="utf-8") as file:
            file.write(line)

    def started(self, step: int) -> None:
        """Drops the lines of later steps, which a resumed run writes again, and a last line that was cut short."""
        if self._path.exists():
            kept = [line for line in read_metrics(self._path) if line["step"] <= step]
            write_metrics(self._path, kept)

    def flush(self) -> None:
        """Has the lines on disk: before a checkpoint, after which they are not computed again."""
        if self._path.exists():
            with writing_to(self._path), self._path.open("rb") as file:
                os.fsync(file.fileno())

    def finish(self, result: dict[str, Any] | None, error: BaseException | None) -> None:
        """Nothing is held back that would have to be written."""


class MetricsTail:
    """Reads a metrics file while it grows, each line once."""

    def __init__(self, path: Path) -> None:
        self._path, self._read = path, 0

    def new_lines(self) -> list[dict[str, Any]]:
        """The whole lines that came since the last call."""
        if not self._path.exists():
            return []
        with self._path.open("rb") as file:
            file.seek(self._read)
            content = file.read()
        whole = content[: content.rfind(b"\n") + 1]
        self._read += len(whole)
        return _whole_lines(whole)


def write_metrics(path: Path, lines: list[dict[str, Any]]) -> None:
    """Puts these lines in the place of a metrics file."""
    write_text_atomically(path, "".join(json.dumps(line) + "\n" for line in lines))


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """All whole lines of a metrics file, without what a crash has left of others, or one that is being written."""
    content = path.read_bytes() if path.exists() else b""
    return _whole_lines(content[: content.rfind(b"\n") + 1])


def _whole_lines(content: bytes) -> list[dict[str, Any]]:
    """The lines that hold an object with a step: a machine that loses its power may leave zeros or blanks in others."""
    lines = []
    for line in content.split(b"\n"):
        try:
            values = json.loads(line)
        except ValueError:
            continue
        if isinstance(values, dict) and isinstance(values.get("step"), int):
            lines.append(values)
    return lines

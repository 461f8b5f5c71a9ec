"""metrics.jsonl: one JSON object a line, each with its step; readable while the run goes on."""

import json
from pathlib import Path
from typing import Any

from cifarscale.files import write_text_atomically, writing_to

TIMES = ("time", "seconds", "data_seconds", "images_per_second")
"""What differs between two runs that compute the same."""


class MetricsLog:
    """Appends lines to a file, each in one write."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def append(self, step: int, values: dict[str, Any]) -> None:
        """Raises: CifarscaleError if the disk is full."""
        line = json.dumps({"step": step, **values}, allow_nan=False) + "\n"
        with writing_to(self._path), self._path.open("a", encoding="utf-8") as file:
            file.write(line)

    def forget_after(self, step: int) -> None:
        """Drops the lines of later steps, which a resumed run writes again, and a last line that was cut short."""
        if self._path.exists():
            kept = [line for line in read_metrics(self._path) if line["step"] <= step]
            write_text_atomically(self._path, "".join(json.dumps(line) + "\n" for line in kept))


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """All whole lines of a metrics file; a last one that is being written is left out."""
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    lines = text.splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n")]

"""The rows of W&B's history, made from what a run folder holds: one a step, whoever reported what of it."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cifarscale.tracking.metrics import MetricsTail


@dataclass
class Row:
    """All that is known of a step: the values of its lines in metrics.jsonl, and its grid of samples."""

    step: int
    values: dict[str, float] = field(default_factory=dict)
    samples: Path | None = None


class Rows:
    """The rows of a run that goes on, each once.

    Args:
        after: the last step that W&B has already; rows up to it are left out.
    """

    def __init__(self, run_dir: Path, after: int) -> None:
        self._tail = MetricsTail(run_dir / "metrics.jsonl")
        self._samples = run_dir / "samples"
        self._given = after
        self._newest = -1
        self._waiting: dict[int, Row] = {}

    def new(self, to_the_end: bool = False) -> Iterator[Row]:
        """The rows that are complete by now, in order of their steps.

        A step's row is complete when a later step has reported, since an evaluation may follow; `to_the_end` takes all.
        """
        for line in self._tail.new_lines():
            self._row(line["step"]).values.update(line)
            self._newest = max(self._newest, line["step"])
        for path in self._samples.glob("step-*.png"):
            self._row(int(path.stem.removeprefix("step-"))).samples = path
        for step in sorted(self._waiting):
            if to_the_end or step < self._newest:
                row = self._waiting.pop(step)
                if step > self._given:
                    self._given = step
                    yield row

    def _row(self, step: int) -> Row:
        if step <= self._given:
            return Row(step)  # for nobody
        return self._waiting.setdefault(step, Row(step))


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The numbers and texts of nested values, by names such as `test/top1`."""
    leaves: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            leaves |= flat(value, f"{prefix}{key}/")
        elif isinstance(value, int | float | str):
            leaves[prefix + key] = value
    return leaves

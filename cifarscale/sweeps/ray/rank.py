"""A rank of a trial, in a process of Ray's."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cifarscale.errors import CifarscaleError, Interrupted
from cifarscale.runs.files import is_listed
from cifarscale.runs.run_folder import RunFolder
from cifarscale.sweeps.trials import COMPLETE, FAILED, INTERRUPTED, WAITING, history, value_of
from cifarscale.training.signals import STOP, StopRequest

STATE, REASON = "cifarscale_state", "cifarscale_reason"
"""Keys under which a trial tells what became of it."""
Report = Callable[[dict[str, Any]], None]
_LOOK_EVERY_S = 1


class Reporter:
    """The sink that tells of a trial's evaluations; the last one is told of when the trial is complete."""

    def __init__(self, report: Report, metric: str, max_steps: int) -> None:
        self._report, self._metric, self._max_steps = report, metric, max_steps

    def started(self, step: int) -> None:
        """Nobody is told of later steps that would be void."""

    def log(self, step: int, values: dict[str, float]) -> None:
        if self._metric in values and step < self._max_steps:
            self._report({"step": step, self._metric: values[self._metric]})

    def finish(self, result: dict[str, Any] | None, error: BaseException | None) -> None:
        """`run_rank` tells of the end."""


def run_rank(config: dict[str, Any], report: Report) -> dict[str, Any]:
    """Runs a trial's job as the rank that the environment names.

    Args:
        report: takes the metrics of evaluations, on rank 0.
    Returns: what is to be reported last: how it ended, and its metric.
    """
    from cifarscale.launch.run import run
    from cifarscale.runs.options import RunOptions

    metric, run_dir = config["metric"], Path(config["run_dir"])
    max_steps = RunFolder(run_dir).load_training_recipe().training.max_steps
    try:
        with _stopping_with_the_sweep(config["until"], Path(config["stop_file"])) as stop:
            options = RunOptions.from_plain(config["options"])
            result = run(run_dir, options, Reporter(report, metric, max_steps), stop)
    except Interrupted:
        until = config["until"]
        values = dict(history(RunFolder(run_dir), metric))
        return {"step": until, metric: values[until], STATE: WAITING} if until in values else {STATE: INTERRUPTED}
    except CifarscaleError as error:  # said in our own words, it would happen again: no retry
        return {STATE: FAILED, REASON: str(error)}
    return {"step": max_steps, metric: value_of(result, metric), STATE: COMPLETE}


@contextmanager
def _stopping_with_the_sweep(after_step: int | None, stop_file: Path) -> Iterator[StopRequest]:
    """A request to stop after a step, and when the driver asks for it by a file."""
    request, over = StopRequest(), threading.Event()
    request.after_step = after_step

    def look() -> None:
        while not over.wait(_LOOK_EVERY_S):
            if is_listed(stop_file):
                request.requested = STOP
                return

    threading.Thread(target=look, daemon=True).start()
    try:
        yield request
    finally:
        over.set()

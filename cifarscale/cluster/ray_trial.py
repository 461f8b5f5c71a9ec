"""A trial, in a process of Ray's. Importing this loads Ray."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
from ray import tune

from cifarscale.cluster.trials import COMPLETE, FAILED, INTERRUPTED, value_of
from cifarscale.config.load import load_recipe
from cifarscale.errors import CifarscaleError, Interrupted
from cifarscale.training.signals import STOP, StopRequest

STATE, REASON = "cifarscale_state", "cifarscale_reason"
"""Keys under which a trial tells what became of it."""
STOP_ACTOR = "stop"
"""Name of the sweep's StopActor."""
_ASKED_EVERY_S = 1


class StopActor:
    """Whether trials are to save and stop: the driver asks for it here, and they look, on whatever node they are."""

    def __init__(self) -> None:
        self._asked = False

    def ask(self) -> None:
        """Asks all trials to stop."""
        self._asked = True

    def asked(self) -> bool:
        """Whether the driver has asked."""
        return self._asked


class Reporter:
    """The sink that tells Ray Tune of a trial's evaluations; of the last one when the trial is complete."""

    def __init__(self, metric: str, max_steps: int) -> None:
        self._metric, self._max_steps = metric, max_steps

    def started(self, step: int) -> None:
        """Ray Tune knows nothing of later steps that would be void."""

    def log(self, step: int, values: dict[str, float]) -> None:
        if self._metric in values and step < self._max_steps:
            tune.report({"step": step, self._metric: values[self._metric]})

    def finish(self, result: dict[str, Any] | None, error: BaseException | None) -> None:
        """`run_trial` tells of the end."""


def run_trial(config: dict[str, Any]) -> None:
    """The same `run_job` as anywhere."""
    from cifarscale.run import Placement, run_job

    metric, run_dir = config["metric"], Path(config["run_dir"])
    recipe = load_recipe(str(run_dir / "recipe.toml"))
    max_steps = recipe.training.max_steps
    try:
        with _stopping_with_the_sweep() as stop:
            placement = Placement.from_plain(config["placement"])
            result = run_job(recipe, run_dir, placement, Reporter(metric, max_steps), stop)
    except Interrupted:
        tune.report({STATE: INTERRUPTED})
    except CifarscaleError as error:  # said in our own words, it would happen again: no retry
        tune.report({STATE: FAILED, REASON: str(error)})
    else:
        tune.report({"step": max_steps, metric: value_of(result, metric), STATE: COMPLETE})


@contextmanager
def _stopping_with_the_sweep() -> Iterator[StopRequest]:
    """A request to stop that comes when the driver asks for it."""
    request, over = StopRequest(), threading.Event()
    actor = ray.get_actor(STOP_ACTOR)

    def look() -> None:
        while not over.wait(_ASKED_EVERY_S):
            try:
                if ray.get(actor.asked.remote()):
                    request.requested = STOP
                    return
            except ray.exceptions.RayError:  # the driver has gone, and this process goes with it
                return

    threading.Thread(target=look, daemon=True).start()
    try:
        yield request
    finally:
        over.set()

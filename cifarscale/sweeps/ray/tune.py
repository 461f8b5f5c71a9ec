"""Trials side by side with Ray Tune. Importing this loads Ray."""

import logging
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Protocol

import ray
from ray import tune
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from cifarscale.config.recipe import TrainingRecipe
from cifarscale.sweeps.ray.cluster import RayAddress
from cifarscale.sweeps.ray.failure import failure_of
from cifarscale.sweeps.ray.rank import REASON, STATE
from cifarscale.sweeps.ray.trial import run_trial
from cifarscale.sweeps.recipe import AshaConfig, SweepRecipe
from cifarscale.sweeps.search import Search
from cifarscale.sweeps.trials import (
    FAILED,
    INTERRUPTED,
    RUNNING,
    STOPPED,
    WAITING,
    SweepFolder,
    Trial,
    history,
)
from cifarscale.training.signals import StopRequest, handling

SAVING_S = 20
"""How long trials that are asked to stop may take to save; who needs more goes on from an earlier checkpoint."""


class Watcher(Protocol):
    """Sees what becomes of trials."""

    def changed(self, trial: Trial) -> None:
        """A trial has another state, step or value."""


@dataclass
class Ended:
    """Why a sweep ended before its last trial.

    Attributes:
        reason: empty if it did not.
        requested: what a signal asked for, as in StopRequest.
    """

    reason: str = ""
    requested: int = 0


def run_trials(
    sweep: SweepRecipe,
    base: TrainingRecipe,
    folder: SweepFolder,
    search: Search,
    options: dict[str, Any],
    watcher: Watcher,
    address: RayAddress,
    stop: StopRequest,
) -> Ended:
    """Runs all trials of a search that are not done, and keeps the folder's table up to date.

    Args:
        options: of the trials, as plain values.
        stop: by which signals end the sweep; its trials save first.
    """
    folder.ray.mkdir(exist_ok=True)
    start = len(list(folder.ray.glob("start-*"))) + 1
    stop_file = folder.ray.absolute() / f"stop-{start}"
    stop_file.unlink(missing_ok=True)  # of a start that was asked to stop before it had a folder
    with _connected(address):
        tracker = _TrialTracker(sweep, folder, search, options, watcher, stop, stop_file)
        tuner = tune.Tuner(
            tune.with_resources(run_trial, _resources(sweep)),
            tune_config=tune.TuneConfig(
                search_alg=_Searcher(tracker),
                scheduler=_scheduler(sweep, base, folder),
                num_samples=-1,  # the search knows when to end
                max_concurrent_trials=_concurrent(sweep),
                reuse_actors=True,
                trial_dirname_creator=_name,
            ),
            run_config=tune.RunConfig(
                name=f"start-{start}",
                storage_path=str(folder.ray.absolute()),
                failure_config=tune.FailureConfig(max_failures=sweep.retries),
                stop=_Stopper(tracker),
                callbacks=[_Callback(tracker)],
                verbose=0,
            ),
        )
        tuner.fit()
    for trial in folder.trials:
        if trial.state == RUNNING:
            tracker.set(trial, INTERRUPTED, tracker.ended.reason)
    return tracker.ended


@contextmanager
def _connected(address: RayAddress) -> Iterator[None]:
    """This process as the driver of a Ray."""
    for name in ("ray", "ray.tune", "ray.train"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # what becomes of trials is said by us
    ours: dict[signal.Signals, Any] = {signum: signal.getsignal(signum) for signum in (signal.SIGTERM, signal.SIGINT)}
    with handling(ours):  # Ray puts its own in their place
        ray.init(address=address.address, log_to_driver=False, logging_level=logging.ERROR, namespace="cifarscale")
    try:
        yield
    finally:
        ray.shutdown()


def _name(ray_trial: Any) -> str:
    """The folder of what Ray itself writes of a trial."""
    return f"trial-{ray_trial.config['trial']}-{ray_trial.trial_id}"


class _TrialTracker:
    """Keeps the sweep's table. Ray copies and pickles what it is given; there is one tracker all the same."""

    def __init__(
        self,
        sweep: SweepRecipe,
        folder: SweepFolder,
        search: Search,
        options: dict[str, Any],
        watcher: Watcher,
        stop: StopRequest,
        stop_file: Path,
    ) -> None:
        self.sweep, self.folder, self.search, self.ended = sweep, folder, search, Ended()
        self._options, self._watcher, self._stop, self._stop_file = options, watcher, stop, stop_file
        self._begun, self._seconds_before = time.monotonic(), folder.seconds
        self._patience_ends = float("inf")

    def __deepcopy__(self, memo: dict[int, Any]) -> "_TrialTracker":
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return object, ()  # in Ray's own record of the sweep, which nothing reads

    def must_end(self) -> bool:
        """Asks all trials to save and stop when a signal came or the time is up. Returns: whether to wait no longer."""
        if not self.ended.reason and (reason := self._reason_to_end()):
            self.ended.reason, self.ended.requested = reason, self._stop.requested
            self._stop_file.touch()  # trials look for it, on whatever node they are
            self._patience_ends = time.monotonic() + SAVING_S
        return time.monotonic() > self._patience_ends

    def _reason_to_end(self) -> str:
        if self._stop.requested:
            return "it was asked to stop"
        budget = self.sweep.time_budget_min
        return f"time_budget_min = {budget:g} is used up" if 0 < 60 * budget < self._seconds() else ""

    def _seconds(self) -> float:
        return self._seconds_before + time.monotonic() - self._begun

    def next_config(self) -> dict[str, Any] | None:
        trial = None if self.ended.reason else self.search.next()
        self.folder.save(self._seconds())
        if trial is None:
            return None
        run_dir = str(self.folder.run(trial).path.absolute())
        return {
            "trial": trial.number,
            "run_dir": run_dir,
            "metric": self.sweep.metric,
            "until": trial.until,
            "stop_file": str(self._stop_file),
            "options": self._options,
            "workers": self.sweep.workers_per_trial,
            "cpus_per_worker": self.sweep.cpus_per_trial,
            "gpus_per_worker": self.sweep.gpus_per_trial,
        }

    def of(self, ray_trial: Any) -> Trial:
        number: int = ray_trial.config["trial"]
        return self.folder.trials[number]

    def set(self, trial: Trial, state: str, reason: str = "") -> None:
        trial.state, trial.reason = state, reason
        self.folder.save(self._seconds())
        self._watcher.changed(trial)


class _Searcher(Searcher):
    """Hands our trials to Ray."""

    def __init__(self, tracker: _TrialTracker) -> None:
        super().__init__(metric=tracker.sweep.metric, mode=tracker.sweep.mode)
        self._tracker = tracker

    def suggest(self, trial_id: str) -> Any:
        waits = self._tracker.search.waits and not self._tracker.ended.reason
        return self._tracker.next_config() or (None if waits else Searcher.FINISHED)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        pass  # _Callback tells the search

    def save(self, checkpoint_path: str) -> None:
        Path(checkpoint_path).touch()  # our table is what a sweep resumes from

    def restore(self, checkpoint_path: str) -> None:
        pass


class _Callback(tune.Callback):
    """Writes down what Ray tells of its trials."""

    def __init__(self, tracker: _TrialTracker) -> None:
        self._tracker = tracker

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        ours = self._tracker.of(trial)
        ours.starts += 1
        ours.died = False
        self._tracker.set(ours, RUNNING)

    def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **i: Any) -> None:
        ours = self._tracker.of(trial)
        if STATE in result:
            ours.state, ours.reason = result[STATE], result.get(REASON, "")
        if "step" in result:
            ours.step, ours.value = result["step"], result[self._tracker.sweep.metric]
        self._tracker.set(ours, ours.state, ours.reason)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        ours = self._tracker.of(trial)
        if ours.state == RUNNING:
            ended = self._tracker.ended.reason
            self._tracker.set(ours, INTERRUPTED if ended else STOPPED, ended)
        if ours.is_done or ours.state == WAITING:
            self._tracker.search.ended(ours)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        ours = self._tracker.of(trial)
        if self._tracker.ended.reason:
            self._tracker.set(ours, INTERRUPTED, self._tracker.ended.reason)
            return
        ours.died = True
        self._tracker.set(ours, FAILED, f"{failure_of(trial)} (started {ours.starts} times)")
        self._tracker.search.ended(ours)


def _scheduler(sweep: SweepRecipe, base: TrainingRecipe, folder: SweepFolder) -> TrialScheduler:
    """The scheduler, which knows of the trials that are done already what it would have been told."""
    if not isinstance(sweep.scheduler, AshaConfig):
        return FIFOScheduler()  # type: ignore[no-untyped-call]
    scheduler = ASHAScheduler(
        time_attr="step",
        metric=sweep.metric,
        mode=sweep.mode,
        max_t=base.training.max_steps,
        grace_period=sweep.scheduler.grace_steps,
        reduction_factor=sweep.scheduler.reduction_factor,
        stop_last_trials=False,
    )
    for trial in folder.trials:
        if trial.is_done and trial.folder:
            known: Any = SimpleNamespace(trial_id=f"before-{trial.number}")
            controller: Any = None
            scheduler.on_trial_add(controller, known)
            for step, value in history(folder.run(trial), sweep.metric):
                scheduler.on_trial_result(controller, known, {"step": step, sweep.metric: value})
    return scheduler


def _resources(sweep: SweepRecipe) -> tune.PlacementGroupFactory:
    """What a trial takes; one of several workers needs nothing for the process that waits for them."""
    worker = {"CPU": float(sweep.cpus_per_trial), "GPU": sweep.gpus_per_trial}
    workers = [{name: number for name, number in worker.items() if number}] * sweep.workers_per_trial
    return tune.PlacementGroupFactory(workers if sweep.workers_per_trial == 1 else [{}, *workers])


def _concurrent(sweep: SweepRecipe) -> int:
    """Trials side by side: as many as fit, and no more than the sweep allows."""
    has = ray.cluster_resources()  # type: ignore[no-untyped-call]
    fits = int(has.get("CPU", 0) // sweep.cpus_per_trial)
    if sweep.gpus_per_trial:
        fits = min(fits, int(has.get("GPU", 0) / sweep.gpus_per_trial + 1e-6))
    fits //= sweep.workers_per_trial
    return max(1, min(fits, sweep.max_concurrent or fits))


class _Stopper(tune.Stopper):
    """Ends the sweep early; Ray asks it all the time."""

    def __init__(self, tracker: _TrialTracker) -> None:
        self._tracker = tracker

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        return self._tracker.must_end()

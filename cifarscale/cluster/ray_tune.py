"""Trials side by side with Ray Tune. Importing this loads Ray."""

import contextlib
import logging
import os
import shutil
import signal
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, SimpleNamespace
from typing import Any, Protocol

_SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # paths in recipes are as seen from where the user stands
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # a trial that failed reports its reason instead
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "TUNE_FUNCTION_THREAD_TIMEOUT_S": "20",
}
for _variable, _value in _SETTINGS.items():
    os.environ.setdefault(_variable, _value)  # Ray reads them while it is imported

import ray  # noqa: E402
from ray import tune  # noqa: E402
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler  # noqa: E402
from ray.tune.search import Searcher  # noqa: E402

from cifarscale.cluster.search import Search  # noqa: E402
from cifarscale.cluster.trials import (  # noqa: E402
    COMPLETE,
    FAILED,
    INTERRUPTED,
    RUNNING,
    STOPPED,
    SweepFolder,
    Trial,
    history,
    value_of,
)
from cifarscale.config.load import load_recipe  # noqa: E402
from cifarscale.config.recipe import Recipe  # noqa: E402
from cifarscale.config.sweep import AshaConfig, SweepJob  # noqa: E402
from cifarscale.errors import CifarscaleError  # noqa: E402

_OBJECT_STORE_BYTES = 80 * 2**20
"""Near Ray's least: trials send figures alone."""
_STATE, _REASON = "cifarscale_state", "cifarscale_reason"


class Watcher(Protocol):
    """Sees what becomes of trials."""

    def changed(self, trial: Trial) -> None:
        """A trial has another state, step or value."""


@dataclass
class Ended:
    """Why a sweep ended before its last trial; empty if it did not."""

    reason: str = ""
    by_signal: bool = False


def run_trials(
    sweep: SweepJob,
    base: Recipe,
    folder: SweepFolder,
    search: Search,
    placement: dict[str, Any],
    watcher: Watcher,
) -> Ended:
    """Runs all trials of a search that are not done, and keeps the folder's table up to date.

    Args:
        placement: of the trials, as plain values.
    """
    ended = Ended()
    with _local_ray(folder, sweep):
        book = _Book(sweep, folder, search, placement, watcher, ended)
        scheduler = _scheduler(sweep, base, folder)
        with _stopping_on_signals(ended), _stopping_in_time(sweep, book):
            tuner = tune.Tuner(
                tune.with_resources(_run_trial, {"cpu": sweep.cpus_per_trial, "gpu": sweep.gpus_per_trial}),
                tune_config=tune.TuneConfig(
                    search_alg=_Searcher(book),
                    scheduler=scheduler,
                    num_samples=-1,  # the search knows when to end
                    max_concurrent_trials=_concurrent(sweep),
                    reuse_actors=True,
                    trial_dirname_creator=_name,
                ),
                run_config=tune.RunConfig(
                    name=f"start-{len(list(folder.ray.glob('start-*'))) + 1}",
                    storage_path=str(folder.ray.absolute()),
                    failure_config=tune.FailureConfig(max_failures=sweep.retries),
                    stop=_Stopper(book),
                    callbacks=[_Callback(book)],
                    verbose=0,
                ),
            )
            tuner.fit()
    for trial in folder.trials:
        if trial.state == RUNNING:
            book.set(trial, INTERRUPTED, ended.reason)
    return ended


def _name(ray_trial: Any) -> str:
    """The folder of what Ray itself writes of a trial."""
    return f"trial-{ray_trial.config['trial']}-{ray_trial.trial_id}"


def _run_trial(config: dict[str, Any]) -> None:
    """A trial, in a process of Ray's: the same `run_job` as anywhere."""
    from cifarscale.run import Placement, run_job

    metric, run_dir = config["metric"], Path(config["run_dir"])
    recipe = load_recipe(str(run_dir / "recipe.toml"))
    max_steps = recipe.training.max_steps

    def listener(step: int, values: dict[str, float], checkpoint: Path | None) -> None:
        if metric in values and step < max_steps:  # the last one is reported when the trial is complete
            tune.report({"step": step, metric: values[metric]})

    try:
        result = run_job(recipe, run_dir, Placement.from_plain(config["placement"]), listener)
    except CifarscaleError as error:  # said in our own words, it would happen again: no retry
        tune.report({_STATE: FAILED, _REASON: str(error)})
        return
    tune.report({"step": max_steps, metric: value_of(result, metric), _STATE: COMPLETE})


class _Book:
    """Keeps the sweep's table. Ray copies and pickles what it is given; there is one book all the same."""

    def __init__(
        self,
        sweep: SweepJob,
        folder: SweepFolder,
        search: Search,
        placement: dict[str, Any],
        watcher: Watcher,
        ended: Ended,
    ) -> None:
        self.sweep, self.folder, self.search, self.ended = sweep, folder, search, ended
        self._placement, self._watcher = placement, watcher

    def __deepcopy__(self, memo: dict[int, Any]) -> "_Book":
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return object, ()  # in Ray's own record of the sweep, which nothing reads

    def end(self, reason: str) -> None:
        """Asks all trials to end now."""
        self.ended.reason = self.ended.reason or reason

    def next_config(self) -> dict[str, Any] | None:
        trial = None if self.ended.reason else self.search.next()
        self.folder.save()
        if trial is None:
            return None
        run_dir = str(self.folder.run(trial).path.absolute())
        return {
            "trial": trial.number,
            "run_dir": run_dir,
            "metric": self.sweep.metric,
            "placement": self._placement,
        }

    def of(self, ray_trial: Any) -> Trial:
        number: int = ray_trial.config["trial"]
        return self.folder.trials[number]

    def set(self, trial: Trial, state: str, reason: str = "") -> None:
        trial.state, trial.reason = state, reason
        self.folder.save()
        self._watcher.changed(trial)


class _Searcher(Searcher):
    """Hands our trials to Ray."""

    def __init__(self, book: _Book) -> None:
        super().__init__(metric=book.sweep.metric, mode=book.sweep.mode)
        self._book = book

    def suggest(self, trial_id: str) -> Any:
        return self._book.next_config() or Searcher.FINISHED

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        pass  # _Callback tells the search

    def save(self, checkpoint_path: str) -> None:
        Path(checkpoint_path).touch()  # our table is what a sweep resumes from

    def restore(self, checkpoint_path: str) -> None:
        pass


class _Callback(tune.Callback):
    """Writes down what Ray tells of its trials."""

    def __init__(self, book: _Book) -> None:
        self._book = book

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        ours = self._book.of(trial)
        ours.starts += 1
        ours.died = False
        self._book.set(ours, RUNNING)

    def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **i: Any) -> None:
        ours = self._book.of(trial)
        if _STATE in result:
            ours.state, ours.reason = result[_STATE], result.get(_REASON, "")
        if "step" in result:
            ours.step, ours.value = result["step"], result[self._book.sweep.metric]
        self._book.set(ours, ours.state, ours.reason)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        ours = self._book.of(trial)
        if ours.state == RUNNING:
            ended = self._book.ended.reason
            self._book.set(ours, INTERRUPTED if ended else STOPPED, ended)
        if ours.is_done:
            self._book.search.ended(ours)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        ours = self._book.of(trial)
        ours.died = True
        self._book.set(ours, FAILED, f"{_cause(trial)} (started {ours.starts} times)")
        self._book.search.ended(ours)


def _cause(trial: Any) -> str:
    """What ended a trial's process, in one line."""
    error = trial.get_error()
    if error is None:
        return "its process ended"
    if isinstance(error, ray.exceptions.RayActorError):
        return "its process died: it was killed, or ran out of memory"
    cause = getattr(error, "cause", None) or error
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    return f"{type(cause).__name__}: {lines[-1] if lines else ''}"


def _scheduler(sweep: SweepJob, base: Recipe, folder: SweepFolder) -> TrialScheduler:
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


def _concurrent(sweep: SweepJob) -> int:
    """Trials side by side: as many as fit, and no more than the sweep allows."""
    has = ray.cluster_resources()  # type: ignore[no-untyped-call]
    fits = int(has.get("CPU", 0) // sweep.cpus_per_trial)
    if sweep.gpus_per_trial:
        fits = min(fits, int(has.get("GPU", 0) / sweep.gpus_per_trial + 1e-6))
    return max(1, min(fits, sweep.max_concurrent or fits))


class _Stopper(tune.Stopper):
    """Ends all trials when time is up or a signal came; their checkpoints stand."""

    def __init__(self, book: _Book) -> None:
        self._book = book

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        return bool(self._book.ended.reason)


@contextlib.contextmanager
def _stopping_on_signals(ended: Ended) -> Iterator[None]:
    """SIGTERM and Ctrl-C end the sweep at once; the same command with --resume goes on."""

    def stop(signum: int, frame: FrameType | None) -> None:
        ended.reason, ended.by_signal = f"{signal.Signals(signum).name} came", True

    previous = {signum: signal.signal(signum, stop) for signum in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for signum, handler in previous.items():
            signal.signal(signum, handler)


@contextlib.contextmanager
def _stopping_in_time(sweep: SweepJob, book: _Book) -> Iterator[None]:
    """The end of the time budget ends the sweep."""
    if not sweep.time_budget_min:
        yield
        return
    reason = f"time_budget_min = {sweep.time_budget_min:g} is used up"
    timer = threading.Timer(60 * sweep.time_budget_min, book.end, (reason,))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


@contextlib.contextmanager
def _local_ray(folder: SweepFolder, sweep: SweepJob) -> Iterator[None]:
    """A Ray of our own on this machine, gone afterwards; what one that was killed has left is removed.

    Where this process is killed, raylet and trials die with it at once, and Ray's two idle agents within a minute.
    """
    for name in ("ray", "ray.tune", "ray.train"):
        logging.getLogger(name).setLevel(logging.ERROR)
    folder.ray.mkdir(parents=True, exist_ok=True)
    note = folder.ray / "temporary"
    if note.is_file():
        shutil.rmtree(note.read_text(encoding="utf-8"), ignore_errors=True)
    # Sockets lie there, and their paths may be 107 bytes long: not below the sweep, or TMPDIR.
    temporary = tempfile.mkdtemp(prefix="cifarscale-ray-", dir="/tmp")
    note.write_text(temporary, encoding="utf-8")
    try:
        ray.init(
            address="local",
            num_cpus=len(os.sched_getaffinity(0)),
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            object_store_memory=_OBJECT_STORE_BYTES,
            _temp_dir=temporary,
        )
        yield
    finally:
        ray.shutdown()
        shutil.rmtree(temporary, ignore_errors=True)
        note.unlink(missing_ok=True)

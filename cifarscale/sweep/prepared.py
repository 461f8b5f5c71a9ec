"""A sweep: checks, trials, and the best of them as a recipe."""

import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from cifarscale.config.dcgan import GanRecipe
from cifarscale.config.load import recipe_toml
from cifarscale.config.recipe import TrainingRecipe
from cifarscale.config.sweep import PbtConfig, SweepRecipe
from cifarscale.data.build import locate_shards
from cifarscale.data.manifest import Manifest
from cifarscale.errors import ConfigError, Interrupted, RunError
from cifarscale.evaluation.features import inception
from cifarscale.files import write_json_atomically, write_text_atomically
from cifarscale.prepare import RunOptions, batch_size_per_rank, resolve
from cifarscale.runs.lease import lease
from cifarscale.runs.run_folder import RunFolder
from cifarscale.sweep.exploration import check_population
from cifarscale.sweep.ray.cluster import RayAddress, ray_cluster
from cifarscale.sweep.search import make_search
from cifarscale.sweep.space import best_recipe, check_sweep, corners, trial_recipe
from cifarscale.sweep.trials import FAILED, SweepFolder, Trial, default_sweep_dir, ranked
from cifarscale.training.signals import CONTINUE_LATER, StopRequest

if TYPE_CHECKING:
    from cifarscale.sweep.ray.tune import Watcher

PATIENCE_S = 90
"""How long a trial waits for one of a killed sweep that still writes its folder."""


@dataclass(frozen=True)
class Nodes:
    """Where trials run: what each node has, and how their Ray is started."""

    num_cpus: int
    num_gpus: int
    start_ray: Callable[[], AbstractContextManager[RayAddress]]


def this_machine() -> Nodes:
    """All cores and GPUs of this machine."""
    num_cpus, num_gpus = len(os.sched_getaffinity(0)), torch.cuda.device_count()
    return Nodes(num_cpus, num_gpus, lambda: ray_cluster(num_cpus, num_gpus))


@dataclass(frozen=True)
class PreparedSweep:
    """A sweep that has been checked, with its base tied to its data, and its folder."""

    sweep: SweepRecipe
    base: TrainingRecipe
    folder: SweepFolder
    shards: Path

    def result(self) -> dict[str, Any] | None:
        """What came of it, if all that the recipe asks for has run."""
        result = self.folder.result()
        if result is None or self.sweep.num_trials > result["asked"]:
            return None
        out_of_time = result["ended"] and self.sweep.time_budget_min != result["time_budget_min"]
        return None if out_of_time else result

    def run(self, nodes: Nodes, resume: bool, watcher: "Watcher", stop: StopRequest, patience_s: float = 0) -> None:
        """Runs the sweep to its end.

        Args:
            resume: go on with a sweep that was interrupted, or that is to have more trials.
            patience_s: how long to wait for another process that still runs it.
        Raises: ConfigError or RunError for what is wrong, before anything starts; Interrupted if a signal came.
        """
        folder, sweep = self.folder, self.sweep
        begun = folder.table.is_file()
        with lease(folder.lease, RunFolder(folder.path).refusal, patience_s):
            folder.prepare(sweep, self.base)
            folder.load()
            if begun and not resume:
                if self.result() is not None:
                    return
                raise RunError(f"{folder.path} holds a sweep that is not complete. Add --resume to go on with it")
            search = make_search(sweep, self.base, folder, Manifest.load(self.shards))
            folder.save(folder.seconds)
            folder.forget_result()
            options = RunOptions(self.shards, "cuda" if sweep.gpus_per_trial else "cpu", patience_s=PATIENCE_S)
            with nodes.start_ray() as address:
                from cifarscale.sweep.ray.tune import run_trials

                ended = run_trials(sweep, self.base, folder, search, options.as_plain(), watcher, address, stop)
                best = self._keep_best()
                if ended.requested:
                    raise Interrupted(
                        f"{ended.reason}; trials have saved. Run the same command with --resume to go on",
                        to_continue=ended.requested == CONTINUE_LATER,
                    )
                self._plot()
                write_json_atomically(RunFolder(folder.path).result_file, self._result(best, ended.reason))

    def _keep_best(self) -> Trial | None:
        """Writes best.toml, of the trials that have run by now."""
        best = next(iter(ranked(self.folder.trials, self.sweep.mode)), None)
        if best is not None:
            recipe = best_recipe(self.sweep, self.base, best.recipe_values)
            write_text_atomically(self.folder.best, recipe_toml(recipe))
        return best

    def _plot(self) -> None:
        from cifarscale.sweep.plots import plot_sweep

        plot_sweep(self.folder, self.sweep)

    def _result(self, best: Trial | None, ended: str) -> dict[str, Any]:
        trials = self.folder.trials
        return {
            "name": self.sweep.name,
            "task": self.sweep.task,
            "metric": self.sweep.metric,
            "mode": self.sweep.mode,
            "asked": self.sweep.num_trials,
            "trials": len(trials),
            "failed": sum(trial.state == FAILED for trial in trials),
            "seconds": round(self.folder.seconds, 1),
            "time_budget_min": self.sweep.time_budget_min,
            "ended": ended,
            "best": self._about(best) if best else None,
        }

    def _about(self, best: Trial) -> dict[str, Any]:
        return {
            "trial": best.number,
            "run": str(self.folder.run(best).path.relative_to(self.folder.path)),
            "state": best.state,
            "step": best.step,
            "value": best.value,
            "overrides": best.recipe_values,
        }


def prepare_sweep(sweep: SweepRecipe, run_dir: Path | None, data: str | None) -> PreparedSweep:
    """Checks a sweep, and ties its base to its data.

    Args:
        run_dir: None for the sweep's own, `runs/NAME-HASH`.
        data: a data set or a folder of shards; None for the base's own.
    Raises: ConfigError, DataError or RunError for what is wrong.
    """
    base = check_sweep(sweep)
    if isinstance(sweep.scheduler, PbtConfig):
        check_population(sweep, base)
    _check_features(base)
    shards = locate_shards(data or base.data.dataset).resolve()
    base = resolve(base, shards)
    for overrides in corners(sweep.space, base):
        batch_size_per_rank(trial_recipe(sweep, base, overrides), sweep.workers_per_trial)
    validation, samples = base.data.num_validation, Manifest.load(shards).split("train").num_samples
    if validation >= samples:
        raise ConfigError(f"data.num_validation = {validation} leaves nothing of {samples} samples to train on")
    return PreparedSweep(sweep, base, SweepFolder((run_dir or default_sweep_dir(sweep)).absolute()), shards)


def _check_features(base: TrainingRecipe) -> None:
    """Raises: ConfigError or DataError if that by whose features generators are compared is not there."""
    if not isinstance(base, GanRecipe):
        return
    kind, _, run = base.distance.features.partition(":")
    if kind == "inception":
        inception(Path(base.distance.weights) if base.distance.weights else None, torch.device("cpu"))
    elif kind == "cnn" and RunFolder(Path(run)).result() is None:
        raise ConfigError(
            f"distance.features = 'cnn:{run}': there is no complete run in {run}. "
            "Run: cifarscale train resnet, then add --set set.distance.features=cnn:RUN"
        )

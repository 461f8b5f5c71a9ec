"""A sweep as it runs: trials, and the best of them as a recipe."""

import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from cifarscale.config.load import recipe_toml
from cifarscale.data.manifest import Manifest
from cifarscale.errors import Interrupted, RunError
from cifarscale.runs.files import write_json_atomically, write_text_atomically
from cifarscale.runs.lease import lease
from cifarscale.runs.run_folder import RunFolder
from cifarscale.sweeps.prepared import PreparedSweep
from cifarscale.sweeps.ray.cluster import RayAddress, ray_cluster
from cifarscale.sweeps.search import make_search
from cifarscale.sweeps.space import best_recipe
from cifarscale.sweeps.trials import FAILED, Trial, ranked
from cifarscale.training.signals import CONTINUE_LATER, StopRequest

if TYPE_CHECKING:
    from cifarscale.sweeps.ray.tune import Watcher

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


class RunningSweep:
    """Runs a prepared sweep."""

    def __init__(self, prepared: PreparedSweep) -> None:
        self._prepared, self._sweep, self._base = prepared, prepared.recipe, prepared.base
        self._folder = prepared.folder

    def run(
        self, nodes: Nodes, resume: bool, watcher: "Watcher", stop: StopRequest, patience_s: float = 0
    ) -> dict[str, Any]:
        """Runs the sweep to its end.

        Args:
            resume: go on with a sweep that was interrupted, or that is to have more trials.
            patience_s: how long to wait for another process that still runs it.
        Returns: the result.
        Raises: ConfigError or RunError for what is wrong, before anything starts; Interrupted if a signal came.
        """
        prepared, folder, sweep = self._prepared, self._folder, self._sweep
        begun, shards = folder.table.is_file(), prepared.options.shards
        assert shards is not None
        with lease(folder.lease, RunFolder(folder.path).refusal, patience_s):
            prepared.make_folder()
            folder.load()
            if begun and not resume:
                if (result := prepared.result()) is not None:
                    return result
                raise RunError(f"{folder.path} holds a sweep that is not complete. Add --resume to go on with it")
            search = make_search(sweep, self._base, folder, Manifest.load(shards))
            folder.save(folder.seconds)
            folder.forget_result()
            device = "cuda" if sweep.gpus_per_trial else "cpu"
            options = replace(prepared.options, device=device, patience_s=PATIENCE_S)
            with nodes.start_ray() as address:
                from cifarscale.sweeps.ray.tune import run_trials

                ended = run_trials(sweep, self._base, folder, search, options.as_plain(), watcher, address, stop)
                best = self._keep_best()
                if ended.requested:
                    raise Interrupted(
                        f"{ended.reason}; trials have saved. Run the same command with --resume to go on",
                        to_continue=ended.requested == CONTINUE_LATER,
                    )
                self._plot()
                result = self._result(best, ended.reason)
                write_json_atomically(RunFolder(folder.path).result_file, result)
                return result

    def _keep_best(self) -> Trial | None:
        """Writes best.toml, of the trials that have run by now."""
        best = next(iter(ranked(self._folder.trials, self._sweep.mode)), None)
        if best is not None:
            recipe = best_recipe(self._sweep, self._base, best.recipe_values)
            write_text_atomically(self._folder.best, recipe_toml(recipe))
        return best

    def _plot(self) -> None:
        from cifarscale.sweeps.plots import plot_sweep

        plot_sweep(self._folder, self._sweep)

    def _result(self, best: Trial | None, ended: str) -> dict[str, Any]:
        trials = self._folder.trials
        return {
            "name": self._sweep.name,
            "task": self._sweep.task,
            "metric": self._sweep.metric,
            "mode": self._sweep.mode,
            "asked": self._sweep.num_trials,
            "trials": len(trials),
            "failed": sum(trial.state == FAILED for trial in trials),
            "seconds": round(self._folder.seconds, 1),
            "time_budget_min": self._sweep.time_budget_min,
            "ended": ended,
            "best": self._description(best) if best else None,
        }

    def _description(self, best: Trial) -> dict[str, Any]:
        return {
            "trial": best.number,
            "run": str(self._folder.run(best).path.relative_to(self._folder.path)),
            "state": best.state,
            "step": best.step,
            "value": best.value,
            "overrides": best.recipe_values,
        }

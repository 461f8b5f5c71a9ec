"""The task `sweep`."""

import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cifarscale.config.recipe import TrainingRecipe
from cifarscale.config.registry import register_task
from cifarscale.runs.options import RunOptions
from cifarscale.runs.run_folder import RunFolder
from cifarscale.sweeps.prepared import PreparedSweep, prepare_sweep
from cifarscale.sweeps.recipe import SweepRecipe
from cifarscale.sweeps.space import base_of
from cifarscale.sweeps.trials import SweepFolder, Trial, trial_line
from cifarscale.sweeps.view import SweepView
from cifarscale.tasks.base import Task

if TYPE_CHECKING:
    from cifarscale.tracking.sink import Sink
    from cifarscale.training.signals import StopRequest

log = logging.getLogger(__name__)


class _Logged:
    """Each change of a trial as a line of the log."""

    def __init__(self, metric: str) -> None:
        self._metric = metric

    def changed(self, trial: Trial) -> None:
        log.info("%s", trial_line(trial, self._metric))


@register_task("sweep")
class SweepTask(Task):
    """Searches for better values of a training's keys."""

    recipe = SweepRecipe
    command = "sweep"
    view = SweepView()

    def prepare(
        self, recipe: SweepRecipe, run_dir: Path | None, data: str | None, options: RunOptions
    ) -> PreparedSweep:
        return prepare_sweep(recipe, run_dir, data, options)

    def varied(self, recipe: SweepRecipe) -> TrainingRecipe:
        return base_of(recipe)

    def run(
        self,
        recipe: SweepRecipe,
        folder: RunFolder,
        options: RunOptions,
        sink: "Sink | None" = None,
        stop: "StopRequest | None" = None,
    ) -> dict[str, Any]:
        """One rank a node, with the cores that OMP_NUM_THREADS says: rank 0 runs the sweep, on a Ray over all of them.

        Raises: Interrupted on all ranks if a signal came.
        """
        from cifarscale.distributed.ranks import FILE_VARIABLE, ranks_from_environment
        from cifarscale.sweeps.ray.cluster import ray_over_nodes, serve_node
        from cifarscale.training.signals import stop_on_signals

        ranks, meeting = ranks_from_environment(), Path(os.environ[FILE_VARIABLE]).with_suffix("")
        num_cpus = int(os.environ["OMP_NUM_THREADS"])
        num_gpus = _num_gpus() if recipe.gpus_per_trial else 0
        with stop_on_signals() as request:
            if not ranks.is_first:
                serve_node(ranks, meeting, num_cpus, num_gpus)
                return {}
            from cifarscale.sweeps.running import Nodes, RunningSweep  # loads torch, which the other ranks do without

            nodes = Nodes(num_cpus, num_gpus, lambda: ray_over_nodes(ranks, meeting, num_cpus, num_gpus))
            base = SweepFolder(folder.path).load_base()
            prepared = PreparedSweep(recipe=recipe, run_dir=folder.path, options=options, base=base)
            return RunningSweep(prepared).run(nodes, True, _Logged(recipe.metric), request, options.patience_s)


def _num_gpus() -> int:
    import torch

    return torch.cuda.device_count()

"""A job with all that it needs to run somewhere else: its folder, its data, and what each rank calls."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from cifarscale.config.distance import DistanceRecipe
from cifarscale.config.evaluate import EvaluateRecipe
from cifarscale.config.load import with_values
from cifarscale.config.recipe import Recipe, TrainingRecipe
from cifarscale.config.sweep import SweepRecipe
from cifarscale.data.build import locate_shards
from cifarscale.data.manifest import Manifest
from cifarscale.errors import ConfigError
from cifarscale.launch.call import Call, evaluation, measurement, training
from cifarscale.prepare import RunOptions, check_num_workers, default_run_dir, is_split, resolve, shards_to_measure
from cifarscale.runs.run_folder import RunFolder
from cifarscale.slurm.plan import Pace
from cifarscale.sweep.prepared import PreparedSweep, prepare_sweep
from cifarscale.sweep.task import sweeping
from cifarscale.tracking.metrics import read_metrics

PATIENCE_S = 300
"""How long a job waits for one before it that has lost its node, and may still write the run folder."""


@dataclass(frozen=True)
class Work:
    """A job that is to run in its folder.

    Attributes:
        manifest: of the shards that it trains on; None for a job that trains nothing itself.
        sweep: of a sweep, None for any other job.
    """

    job: Recipe
    run_dir: Path
    call: Call
    manifest: Manifest | None = None
    sweep: PreparedSweep | None = None

    @property
    def num_shards(self) -> int:
        """Shards of the training split; 0 for a job that trains nothing."""
        return len(self.manifest.split("train").shards) if self.manifest else 0

    def prepare(self) -> None:
        """Makes the run folder. Raises: RunError if it holds another run."""
        if self.sweep is not None:
            self.sweep.folder.prepare(self.sweep.sweep, self.sweep.base)
        else:
            RunFolder(self.run_dir).prepare(self.job, self.manifest)

    def result(self) -> dict[str, Any] | None:
        """Its result if it is complete. Raises: RunError if the folder is that of another job."""
        if self.sweep is not None:
            self.sweep.folder.require(self.sweep.sweep, self.sweep.base)
            return self.sweep.result()
        folder = RunFolder(self.run_dir)
        result = folder.result()
        if result is not None:
            folder.require(self.job)
        return result


def make_work(job: Recipe, run_dir: Path | None, data: str | None, device: str, num_workers: int = 0) -> Work:
    """The work that a job of any kind makes, with absolute paths, since it may run in another folder.

    Args:
        run_dir: None for the job's own, `runs/NAME-HASH`.
        data: a data set or a folder of shards; None for the job's own.
        device: `cpu`, `cuda` or `auto`.
        num_workers: reading processes a rank.
    Raises: ConfigError, DataError or RunError for what is missing or does not fit.
    """
    if isinstance(job, TrainingRecipe):
        check_num_workers(job, num_workers)
        shards = locate_shards(data or job.data.dataset).resolve()
        resolved = resolve(job, shards)
        folder = (run_dir or default_run_dir(resolved)).absolute()
        call = training(resolved, folder, RunOptions(shards, device, num_workers, PATIENCE_S))
        return Work(resolved, folder, call, Manifest.load(shards))
    if isinstance(job, EvaluateRecipe):
        return _evaluation(job, run_dir, data, device)
    if isinstance(job, SweepRecipe):
        sweep = prepare_sweep(job, run_dir, data)
        call = sweeping(job, sweep.folder.path, sweep.shards)
        return Work(job, sweep.folder.path, call, sweep=sweep)
    assert isinstance(job, DistanceRecipe)
    return _measurement(job, run_dir, data, device)


def _evaluation(job: EvaluateRecipe, run_dir: Path | None, data: str | None, device: str) -> Work:
    if not job.run:
        raise ConfigError("evaluate needs the run to evaluate. Add: --set run=RUN")
    job = with_values(job, run=str(Path(job.run).absolute()))
    recipe = RunFolder(Path(job.run)).load_training_recipe()
    folder = (run_dir or default_run_dir(job)).absolute()
    options = RunOptions(locate_shards(data or recipe.data.dataset).resolve(), device)
    return Work(job, folder, evaluation(Path(job.run), job.split, options, folder / "result.json"))


def _measurement(job: DistanceRecipe, run_dir: Path | None, data: str | None, device: str) -> Work:
    if not job.images:
        raise ConfigError("fid needs the images to measure. Add: --set images=RUN, a folder of images, train or test")
    job = with_values(job, **_absolute(job))
    shards = shards_to_measure(job, data)
    folder = (run_dir or default_run_dir(job)).absolute()
    return Work(job, folder, measurement(job, shards and shards.resolve(), device, folder / "result.json"))


def _absolute(job: DistanceRecipe) -> dict[str, str]:
    """The paths in a job as absolute ones, by key."""
    kind, _, run = job.distance.features.partition(":")
    paths = {"images": job.images, "distance__against": job.distance.against, "distance__weights": job.distance.weights}
    changes = {key: str(Path(path).absolute()) for key, path in paths.items() if path and not is_split(path)}
    return changes | ({"distance__features": f"{kind}:{Path(run).absolute()}"} if run else {})


def pace(work: Work, runs: Sequence[Path]) -> Pace:
    """How fast the work was before: in its own folder, or else in the newest run of a job of that name.

    Args:
        runs: other run folders.
    """
    own = read_metrics(RunFolder(work.run_dir).metrics)
    step = own[-1]["step"] if own else 0
    others = sorted(
        (run for run in runs if run.name.startswith(f"{work.job.name}-") and run != work.run_dir),
        key=lambda run: run.stat().st_mtime,
    )
    for metrics in chain([own], (read_metrics(RunFolder(run).metrics) for run in reversed(others))):
        rates = [line["images_per_second"] for line in metrics if line.get("images_per_second")]
        if rates:
            return Pace(rates[-1], step)
    return Pace(None, step)

"""A sweep on this machine: checks, trials, and the best of them as a recipe."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cifarscale.cluster.search import make_search
from cifarscale.cluster.trials import FAILED, SweepFolder, Trial, default_sweep_dir, ranked
from cifarscale.config.dcgan import DcganRecipe
from cifarscale.config.load import recipe_toml
from cifarscale.config.recipe import Recipe
from cifarscale.config.space import best_recipe, check_sweep
from cifarscale.config.sweep import SweepJob
from cifarscale.data.build import locate_shards
from cifarscale.data.manifest import Manifest
from cifarscale.errors import ConfigError, Interrupted, RunError
from cifarscale.files import write_json_atomically, write_text_atomically
from cifarscale.lease import lease
from cifarscale.run import Placement, resolve
from cifarscale.run_folder import RunFolder

if TYPE_CHECKING:
    from cifarscale.cluster.ray_tune import Watcher

PATIENCE_S = 90
"""How long a trial waits for one of a killed sweep that still writes its folder."""


def run_sweep(
    sweep: SweepJob, run_dir: Path | None, data: str | None, resume: bool, watcher: "Watcher"
) -> tuple[SweepFolder, dict[str, Any]]:
    """Runs a sweep to its end; one that is complete only shows what came of it.

    Args:
        run_dir: None for the sweep's own, `runs/NAME-HASH`.
        data: a data set or a folder of shards; None for the base's own.
        resume: go on with a sweep that was interrupted, or that is to have more trials.
    Returns: its folder, and its result.
    Raises: ConfigError, DataError or RunError for what is wrong, before anything starts; Interrupted if a signal
        came.
    """
    base = check_sweep(sweep)
    _check_resources(sweep)
    _check_features(base)
    shards = locate_shards(data or base.data.dataset).resolve()
    base = resolve(base, shards)
    manifest = Manifest.load(shards)
    validation, samples = base.data.num_validation, manifest.split("train").num_samples
    if validation >= samples:
        raise ConfigError(f"data.num_validation = {validation} leaves nothing of {samples} samples to train on")
    folder = SweepFolder((run_dir or default_sweep_dir(sweep)).absolute())
    begun = folder.table.is_file()
    with lease(folder.lease, RunFolder(folder.path).refusal):
        folder.prepare(sweep, base)
        folder.load()
        if begun and not resume and (result := _complete(folder, sweep)) is not None:
            return folder, result
        if begun and not resume:
            raise RunError(f"{folder.path} holds a sweep that is not complete. Add --resume to go on with it")
        device = "cuda" if sweep.gpus_per_trial else "cpu"
        placement = Placement(shards, device, patience_s=PATIENCE_S).as_plain()
        search = make_search(sweep, base, folder, manifest)
        folder.save()
        from cifarscale.cluster.ray_tune import run_trials

        ended = run_trials(sweep, base, folder, search, placement, watcher)
        folder.save()
        result = _conclude(sweep, base, folder, ended.reason)
        if ended.by_signal:
            raise Interrupted(f"{ended.reason}; finished trials stand. Run the same command with --resume to go on")
        return folder, result


def _complete(folder: SweepFolder, sweep: SweepJob) -> dict[str, Any] | None:
    """The result of a sweep whose trials have all run."""
    result = folder.result()
    if result is None or result["ended"] or sweep.num_trials > result["asked"]:
        return None
    return result


def _conclude(sweep: SweepJob, base: Recipe, folder: SweepFolder, ended: str) -> dict[str, Any]:
    """Writes best.toml and result.json."""
    order = ranked(folder.trials, sweep.mode)
    best = order[0] if order else None
    if best is not None:
        write_text_atomically(folder.best, recipe_toml(best_recipe(sweep, base, best.overrides)))
    result = {
        "name": sweep.name,
        "task": sweep.task,
        "metric": sweep.metric,
        "mode": sweep.mode,
        "asked": sweep.num_trials,
        "trials": len(folder.trials),
        "failed": sum(trial.state == FAILED for trial in folder.trials),
        "ended": ended,
        "best": _about(best, folder) if best else None,
    }
    write_json_atomically(folder.path / "result.json", result)
    return result


def _about(best: Trial, folder: SweepFolder) -> dict[str, Any]:
    return {
        "trial": best.number,
        "run": str(folder.run(best).path.relative_to(folder.path)),
        "state": best.state,
        "step": best.step,
        "value": best.value,
        "overrides": best.overrides,
    }


def _check_resources(sweep: SweepJob) -> None:
    """Raises: ConfigError if a trial asks for more than this machine has."""
    import torch

    cores, gpus = len(os.sched_getaffinity(0)), torch.cuda.device_count()
    if sweep.cpus_per_trial > cores:
        raise ConfigError(f"cpus_per_trial = {sweep.cpus_per_trial}, and this machine has {cores} cores")
    if sweep.gpus_per_trial > gpus:
        raise ConfigError(f"gpus_per_trial = {sweep.gpus_per_trial:g}, and this machine has {gpus} GPUs")
    if sweep.gpus_per_trial > 1:
        raise ConfigError(f"gpus_per_trial = {sweep.gpus_per_trial:g}: a trial is one process, and uses one GPU")


def _check_features(base: Recipe) -> None:
    """Raises: ConfigError if the classifier by whose features generators are compared is not there."""
    kind, _, run = base.distance.features.partition(":") if isinstance(base, DcganRecipe) else ("", "", "")
    if kind == "cnn" and RunFolder(Path(run)).result() is None:
        raise ConfigError(
            f"distance.features = 'cnn:{run}': there is no complete run in {run}. "
            "Run: cifarscale train resnet, then add --set set.distance.features=cnn:RUN"
        )

"""A sweep that has been checked, with its base tied to its data, and its folder."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cifarscale.config.code import FOLDER, following, importing_only_trusted, require_imported, trust
from cifarscale.config.keys import set_key
from cifarscale.config.load import computed, find_recipe
from cifarscale.config.lookup import read_toml
from cifarscale.config.ranks import batch_size_per_rank
from cifarscale.config.recipe import TrainingRecipe
from cifarscale.data.manifest import Manifest
from cifarscale.errors import ConfigError, short_path
from cifarscale.runs.options import RunOptions
from cifarscale.sweeps.exploration import check_population
from cifarscale.sweeps.recipe import PbtConfig, SweepRecipe
from cifarscale.sweeps.space import base_of, check_sweep, corners, trial_recipe
from cifarscale.sweeps.trials import SweepFolder, default_sweep_dir
from cifarscale.tasks.base import PreparedRun, task_of
from cifarscale.tasks.training import TrainingTask, locate_data, resolve

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class PreparedSweep(PreparedRun):
    """A sweep with all that it needs to run.

    Attributes:
        base: what is varied, tied to its data.
    """

    recipe: SweepRecipe
    base: TrainingRecipe

    @property
    def folder(self) -> SweepFolder:
        return SweepFolder(self.run_dir)

    def make_folder(self) -> None:
        self.folder.prepare(self.recipe, self.base)

    def result(self) -> dict[str, Any] | None:
        """What came of it, if all that the recipe asks for has run. Raises: RunError if the folder is of another."""
        self.folder.require(self.recipe, self.base)
        result = self.folder.result()
        if result is None or self.recipe.num_trials > result["asked"]:
            return None
        out_of_time = result["ended"] and self.recipe.time_budget_min != result["time_budget_min"]
        return None if out_of_time else result


def prepare_sweep(sweep: SweepRecipe, run_dir: Path | None, data: str | None, options: RunOptions) -> PreparedSweep:
    """Checks a sweep, and ties its base to its data.

    Args:
        run_dir: None for the sweep's own, `runs/NAME-HASH`.
        data: a data set or a folder of shards; None for the base's own.
        options: but for the shards, which are located here.
    Raises: ConfigError, DataError or RunError for what is wrong.
    """
    folder = SweepFolder((run_dir or default_sweep_dir(sweep)).absolute())
    kept = folder.kept_base(sweep)
    if kept is not None:
        require_imported(kept.code, kept.modules)
    try:
        base = _checked_base(sweep, folder, kept)
    except ConfigError as error:
        if kept is None:
            raise
        log.warning("%s. This sweep goes on with its copy in %s", error, short_path(folder.path))
        base = kept
    if isinstance(sweep.scheduler, PbtConfig):
        check_population(sweep, base)
    task = task_of(base)
    assert isinstance(task, TrainingTask)
    task.check_needs(base, of_sweep=True)
    trust(base.code, base.modules)
    shards = locate_data(base, data).resolve()
    base, manifest = resolve(base, shards), Manifest.load(shards)
    if base.code:
        with following(base.code):
            task.check_code(base, manifest, options.device)
    check_trials(sweep, base, manifest)
    return PreparedSweep(recipe=sweep, run_dir=folder.path, options=options.on(shards), base=base)


def check_trials(sweep: SweepRecipe, base: TrainingRecipe, manifest: Manifest) -> None:
    """Raises: ConfigError if trials cannot be trained on such data."""
    task = task_of(base)
    assert isinstance(task, TrainingTask)
    for overrides in corners(sweep.space, base):
        trial = trial_recipe(sweep, base, overrides)
        task.check_data(trial, manifest.spec, sweep.metric)
        batch_size_per_rank(trial, sweep.workers_per_trial)
        task.check_cost(trial, manifest)
    validation, samples = base.data.num_validation, manifest.split("train").num_samples
    if validation >= samples:
        raise ConfigError(f"data.num_validation = {validation} leaves nothing of {samples} samples to train on")


def _checked_base(sweep: SweepRecipe, folder: SweepFolder, kept: TrainingRecipe | None) -> TrainingRecipe:
    """The base that a sweep names; of one that has begun, the base that it began with if only the code has changed.

    The folder of one that has begun may be anybody's, and so may what its recipe names: of that, code is imported only
    if this user has trained it.

    Args:
        kept: what the sweep began with, if that has code of the user's own.
    """
    if not folder.holds(sweep):
        return check_sweep(sweep)
    with importing_only_trusted():
        base = base_of(sweep)
        if kept is not None and kept.code != base.code:
            if _is_part_of(_given(sweep), kept.model_dump(mode="json")):
                log.warning(
                    "the code of %s has changed since: this sweep goes on with its copy in %s. For another sweep, name "
                    "another --run-dir",
                    *(sweep.base, short_path(folder.path / FOLDER)),
                )
                return kept
            folder.require(sweep, base)
        require_imported(base.code, base.modules)
        return check_sweep(sweep)


def _given(sweep: SweepRecipe) -> dict[str, Any]:
    """What a sweep and the recipe that it varies say of a base, as far as it is computed and not tied to the data."""
    values = read_toml(find_recipe(sweep.base))
    for key, value in sweep.set.items():
        set_key(values, key, value)
    data = {key: value for key, value in values.get("data", {}).items() if key not in ("dataset", "fingerprint")}
    return {key: value for key, value in computed({**values, "data": data}).items() if key != "code"}


def _is_part_of(part: Any, whole: Any) -> bool:
    """Whether all that a part says stands in the whole as well."""
    if isinstance(part, dict) and isinstance(whole, dict):
        return all(key in whole and _is_part_of(value, whole[key]) for key, value in part.items())
    return bool(part == whole)

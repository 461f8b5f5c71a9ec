"""The folder of a sweep, and what it says of its trials; readable while the sweep runs."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from cifarscale.config.code import FOLDER, save_code
from cifarscale.config.load import load_recipe, load_training_recipe, recipe_hash, recipe_toml
from cifarscale.config.recipe import TrainingRecipe
from cifarscale.data.manifest import Manifest
from cifarscale.errors import ConfigError, RunError, short_path
from cifarscale.runs.files import write_json_atomically, write_text_atomically
from cifarscale.runs.lease import living_holder
from cifarscale.runs.run_folder import RUNS_ROOT, RunFolder
from cifarscale.sweeps.recipe import SweepRecipe
from cifarscale.sweeps.space import Overrides, sweep_hash, trial_recipe
from cifarscale.tracking.metrics import read_metrics

WAITING, RUNNING, INTERRUPTED = "waiting", "running", "interrupted"
COMPLETE, STOPPED, FAILED, REPEATED = "complete", "stopped", "failed", "repeated"
DONE = (COMPLETE, STOPPED, REPEATED)
"""States of trials that never run again; of the failed ones those whose process died do."""


@dataclass
class Trial:
    """A trial of a sweep, as a row of table.json.

    Attributes:
        folder: its run folder's name below trials/; empty if it cannot have one.
        step, value: of its last evaluation; of the end if it is complete.
        starts: how often it was started.
        died: whether it failed since its process died, so that it may run again.
        member, until: of a population: its place there, and the step at which it is compared with the others.
        origin, since: of a population: the trial whose checkpoint it began from, and that one's step.
        schedule: of a population: the values by the steps from which they hold, as in a recipe's `later`.
    """

    number: int
    overrides: Overrides
    folder: str = ""
    state: str = WAITING
    step: int = 0
    value: float | None = None
    starts: int = 0
    reason: str = ""
    died: bool = False
    member: int | None = None
    until: int | None = None
    origin: int | None = None
    since: int = 0
    schedule: list[dict[str, Any]] = field(default_factory=list)

    @property
    def recipe_values(self) -> Overrides:
        """What makes a recipe of the base; `overrides` are the values that hold last."""
        if not self.schedule:
            return self.overrides
        first, *later = self.schedule
        return {**first["set"], "later": later}

    @property
    def is_done(self) -> bool:
        return self.state in DONE or (self.state == FAILED and not self.died)


@dataclass
class SweepFolder:
    """The files of a sweep.

    Attributes:
        seconds: that it has run, over all starts.
    """

    path: Path
    trials: list[Trial] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def recipe(self) -> Path:
        return self.path / "recipe.toml"

    @property
    def base(self) -> Path:
        """The base with the sweep's `set`, tied to its data."""
        return self.path / "base.toml"

    @property
    def table(self) -> Path:
        return self.path / "table.json"

    @property
    def best(self) -> Path:
        return self.path / "best.toml"

    @property
    def plots(self) -> Path:
        return self.path / "plots"

    @property
    def ray(self) -> Path:
        """What Ray writes of its own."""
        return self.path / "ray"

    @property
    def lease(self) -> Path:
        """Held by whoever runs the sweep."""
        return self.path / ".lease"

    def run(self, trial: Trial) -> RunFolder:
        return RunFolder(self.path / "trials" / trial.folder)

    def load_sweep(self) -> SweepRecipe:
        """Raises: RunError if this is not a sweep's folder."""
        job = load_recipe(str(self.recipe)) if self.recipe.is_file() else None
        if not isinstance(job, SweepRecipe):
            raise RunError(f"{short_path(self.path)} is not a sweep's folder. Run: cifarscale sweep RECIPE")
        return job

    def load_base(self) -> TrainingRecipe:
        """The base as it was when the sweep was prepared."""
        return load_training_recipe(str(self.base), of_run=True)

    def kept_base(self, sweep: SweepRecipe) -> TrainingRecipe | None:
        """What this sweep began with, if that has code of the user's own, of which a copy lies here; else None."""
        return self.load_base() if (self.path / FOLDER).is_dir() and self.holds(sweep) else None

    def holds(self, sweep: SweepRecipe) -> bool:
        """Whether this sweep has begun here."""
        is_made = self.base.is_file() and self.recipe.is_file()
        return is_made and sweep_hash(self.load_sweep()) == sweep_hash(sweep)

    def prepare(self, sweep: SweepRecipe, base: TrainingRecipe) -> None:
        """Makes the folder, or checks that it is this sweep's. Raises: RunError if it is not."""
        self.require(sweep, base)
        if base.code and not (self.path / FOLDER).exists():
            save_code(base.code, self.path)
        write_text_atomically(self.base, recipe_toml(base))
        write_text_atomically(self.recipe, recipe_toml(sweep))

    def require(self, sweep: SweepRecipe, base: TrainingRecipe) -> None:
        """Raises: RunError if this is a folder of something else."""
        if self.recipe.is_file():
            own_sweep = self.load_sweep()
            if sweep_hash(own_sweep) != sweep_hash(sweep):
                raise RunError(
                    f"{short_path(self.path)} holds a sweep of another recipe "
                    f"({own_sweep.name}-{sweep_hash(own_sweep)}, not {sweep.name}-{sweep_hash(sweep)}); "
                    "name another --run-dir"
                )
            if self.base.is_file() and recipe_hash(self.load_base()) != recipe_hash(base):
                raise RunError(
                    f"{short_path(self.path)} holds a sweep of {sweep.base!r} as it was before: the recipe or its data "
                    "has changed since; name another --run-dir"
                )
        elif self.path.is_dir() and any(
            path for path in self.path.iterdir() if not path.name.startswith((".", "logs", FOLDER))
        ):
            raise RunError(f"{short_path(self.path)} exists and is not a sweep's folder; name another --run-dir")

    def load(self) -> None:
        """Reads the trials from table.json, and from the trials' own folders what came after it was written."""
        if self.table.is_file():
            table = json.loads(self.table.read_text(encoding="utf-8"))
            self.trials[:], self.seconds = [Trial(**row) for row in table["trials"]], table["seconds"]
        sweep = self.load_sweep()
        is_going = bool(living_holder(self.lease))
        for trial in self.trials:
            if trial.state == RUNNING and not is_going:
                trial.state = INTERRUPTED
            if not trial.folder or trial.state == REPEATED:
                continue
            run = self.run(trial)
            result = run.result()
            if result is not None:
                trial.state, trial.reason, trial.step = COMPLETE, "", result["steps"]
                trial.value = value_of(result, sweep.metric)
            elif trial.state in (RUNNING, INTERRUPTED):
                lines = read_metrics(run.metrics)
                trial.step = max([trial.step, *(line["step"] for line in lines)])

    def save(self, seconds: float) -> None:
        """Writes table.json, with the seconds that the sweep has run by now."""
        self.seconds = seconds
        rows = [asdict(trial) for trial in self.trials]
        write_json_atomically(self.table, {"seconds": round(seconds, 1), "trials": rows})

    def result(self) -> dict[str, Any] | None:
        """What came of the sweep; None while it is not over."""
        return RunFolder(self.path).result()

    def forget_result(self) -> None:
        """For a sweep that goes on."""
        RunFolder(self.path).result_file.unlink(missing_ok=True)


def add_trial(
    overrides: Overrides,
    sweep: SweepRecipe,
    base: TrainingRecipe,
    folder: SweepFolder,
    manifest: Manifest,
    schedule: Sequence[dict[str, Any]] = (),
) -> Trial:
    """Adds a trial to the table and makes its run folder; one that is not valid or not new is marked as that."""
    trial = Trial(len(folder.trials), overrides, schedule=list(schedule))
    try:
        recipe = trial_recipe(sweep, base, trial.recipe_values)
    except ConfigError as error:
        trial.state, trial.reason = FAILED, str(error)
    else:
        trial.folder = f"{recipe.name}-{recipe_hash(recipe)}"
        before = next((each for each in folder.trials if each.folder == trial.folder), None)
        if before is not None:
            trial.state, trial.reason = REPEATED, f"the same recipe as trial {before.number}"
        else:
            folder.run(trial).prepare(recipe, manifest)
    folder.trials.append(trial)
    return trial


def default_sweep_dir(sweep: SweepRecipe) -> Path:
    """`runs/NAME-HASH`; more trials or other places to run them do not make it another."""
    return RUNS_ROOT / f"{sweep.name}-{sweep_hash(sweep)}"


def value_of(values: dict[str, Any], metric: str) -> float | None:
    """A metric in what a job reports: `validation_top1` also as `validation.top1`, its name in result.json."""
    key, dot, rest = metric.partition("." if "." in metric else "_")
    value = values.get(metric)
    if value is None and isinstance(values.get(key), dict) and dot:
        value = values[key].get(rest)
    if value is None and isinstance(values.get("distance"), dict) and metric in ("fid", "frechet_distance"):
        value = values["distance"].get("distance")
    return float(value) if isinstance(value, int | float) else None


def ranked(trials: Iterable[Trial], mode: str) -> list[Trial]:
    """The complete trials, best first, then those that were stopped on the way, the later and the better first."""
    sign = -1 if mode == "max" else 1

    def place(trial: Trial) -> tuple[bool, int, float, int]:
        assert trial.value is not None
        complete = trial.state == COMPLETE
        return not complete, 0 if complete else -trial.step, sign * trial.value, trial.number

    return sorted((each for each in trials if each.value is not None and each.state != REPEATED), key=place)


def trial_line(trial: Trial, metric: str) -> str:
    """A trial's state in one line."""
    value = "" if trial.value is None else f"  {metric} {trial.value:.4f}"
    is_new = trial.step == trial.since
    more = trial.reason or (shown_changes(trial) if is_new else "")
    return f"trial {trial.number}  {trial.state}  step {trial.step:,}{value}  {more}".rstrip()


def shown_changes(trial: Trial) -> str:
    """What a trial changes, and where it comes from."""
    return ": ".join(filter(None, (origin_of(trial), shown_overrides(trial.overrides))))


def origin_of(trial: Trial) -> str:
    """Where a trial of a population comes from; empty for one that began by itself."""
    return "" if trial.origin is None else f"from trial {trial.origin} at step {trial.since:,}"


def shown_overrides(overrides: Overrides) -> str:
    """The changed keys of a trial, short: `schedule=cosine` for schedule.name, `width=16` for model.width."""
    short = {key: key.removesuffix(".name").rpartition(".")[2] for key in overrides}
    unique = {name for name in short.values() if list(short.values()).count(name) == 1}
    return ", ".join(
        f"{short[key] if short[key] in unique else key}={_short(value)}" for key, value in overrides.items()
    )


def _short(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def history(run: RunFolder, metric: str) -> Sequence[tuple[int, float]]:
    """(step, value) of a trial's evaluations."""
    return [(line["step"], line[metric]) for line in read_metrics(run.metrics) if metric in line]


def metric_name(metric: str) -> str:
    """As people call it."""
    return metric.replace("_", " ").replace(".", " ").replace("top1", "top-1").replace("top5", "top-5")

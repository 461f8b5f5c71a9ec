"""What each trial of a sweep tries: drawn, from a grid, or proposed by Optuna."""

from itertools import islice
from typing import Any, Protocol

from cifarscale.config.recipe import TrainingRecipe
from cifarscale.data.manifest import Manifest
from cifarscale.errors import ConfigError
from cifarscale.sweeps.population import Population
from cifarscale.sweeps.recipe import OptunaConfig, PbtConfig, SweepRecipe
from cifarscale.sweeps.space import Overrides, assigned, grid, samples, values_of
from cifarscale.sweeps.trials import SweepFolder, Trial, add_trial


class Search(Protocol):
    """Says what to try next.

    Attributes:
        waits: whether there may be another trial when one that runs has ended.
    """

    waits: bool

    def next(self) -> Trial | None:
        """A trial to run, None if there is none now."""

    def ended(self, trial: Trial) -> None:
        """Is told how a trial ended."""


class Planned:
    """Trials that are known before the first one runs: of a random search, or of a grid."""

    waits = False

    def __init__(self, sweep: SweepRecipe, base: TrainingRecipe, folder: SweepFolder, manifest: Manifest) -> None:
        is_grid = sweep.searcher.name == "grid"
        points = grid(sweep.space, base) if is_grid else samples(sweep.space, sweep.seed, base)
        for overrides in islice(points, len(folder.trials), sweep.num_trials):
            add_trial(overrides, sweep, base, folder, manifest)
        self._pending = [trial for trial in folder.trials if not trial.is_done]

    def next(self) -> Trial | None:
        return self._pending.pop(0) if self._pending else None

    def ended(self, trial: Trial) -> None:
        pass


class Proposed:
    """Trials that Optuna proposes one by one, knowing how those before ended."""

    waits = False

    def __init__(self, sweep: SweepRecipe, base: TrainingRecipe, folder: SweepFolder, manifest: Manifest) -> None:
        try:
            import optuna
        except ImportError as error:
            raise ConfigError("searcher.name = 'optuna' needs Optuna. Run: pip install optuna") from error
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        assert isinstance(sweep.searcher, OptunaConfig)
        self._sweep, self._base, self._folder, self._manifest = sweep, base, folder, manifest
        done = [trial for trial in folder.trials if trial.is_done]
        sampler = optuna.samplers.TPESampler(
            seed=(sweep.seed + len(done)) % 2**32, n_startup_trials=sweep.searcher.num_random
        )
        self._study = optuna.create_study(direction="maximize" if sweep.mode == "max" else "minimize", sampler=sampler)
        self._asked: dict[int, Any] = {}
        self._pending = [trial for trial in folder.trials if not trial.is_done]
        for trial in folder.trials:
            self._study.enqueue_trial(self._parameters(trial.overrides))
            self._asked[trial.number] = self._ask()[0]
        for trial in done:
            self.ended(trial)

    def next(self) -> Trial | None:
        if self._pending:
            return self._pending.pop(0)
        while len(self._folder.trials) < self._sweep.num_trials:
            asked, overrides = self._ask()
            trial = add_trial(overrides, self._sweep, self._base, self._folder, self._manifest)
            self._asked[trial.number] = asked
            if not trial.is_done:
                return trial
            self.ended(trial)
        return None

    def ended(self, trial: Trial) -> None:
        import optuna

        asked = self._asked.pop(trial.number)
        if trial.value is None:
            self._study.tell(asked, state=optuna.trial.TrialState.FAIL)
        else:
            self._study.tell(asked, trial.value)

    def _ask(self) -> tuple[Any, Overrides]:
        asked = self._study.ask()
        space = self._sweep.space

        def value(key: str) -> Any:
            kind, bounds = space[key].kind, getattr(space[key], space[key].kind)
            if kind in ("uniform", "loguniform"):
                return asked.suggest_float(key, *bounds, log=kind == "loguniform")
            values = values_of(space[key])
            if kind == "choice":  # by place, since a value may be of any kind
                return values[asked.suggest_categorical(key, list(range(len(values))))]
            return values[asked.suggest_int(key, 0, len(values) - 1)]

        return asked, assigned(space, self._base, value)

    def _parameters(self, overrides: Overrides) -> dict[str, Any]:
        """Overrides as Optuna knows them: places in a list of values."""
        parameters = {}
        for key, value in overrides.items():
            distribution = self._sweep.space[key]
            drawn = distribution.kind in ("uniform", "loguniform")
            parameters[key] = value if drawn else values_of(distribution).index(value)
        return parameters


def make_search(sweep: SweepRecipe, base: TrainingRecipe, folder: SweepFolder, manifest: Manifest) -> Search:
    """The search that a sweep names, with its trials that are done already. Raises: ConfigError without Optuna."""
    if isinstance(sweep.scheduler, PbtConfig):
        return Population(sweep, base, folder, manifest)
    return (Proposed if sweep.searcher.name == "optuna" else Planned)(sweep, base, folder, manifest)

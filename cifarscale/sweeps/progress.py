"""Progress of a sweep for people: its trials as they run."""

from types import TracebackType
from typing import Self

from rich.live import Live

from cifarscale.log import console, shows_live
from cifarscale.sweeps.trials import Trial, trial_line
from cifarscale.sweeps.view import trials_text


class SweepProgress:
    """The trials as they run: a live table on a terminal or in a notebook, a line for each change elsewhere."""

    def __init__(self, metric: str) -> None:
        self._metric = metric
        self._trials: dict[int, Trial] = {}
        self._live = Live(console=console, auto_refresh=False, transient=True) if shows_live() else None

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def changed(self, trial: Trial) -> None:
        """Shows a trial's new state."""
        self._trials[trial.number] = trial
        if self._live is not None:
            rows = [self._trials[number] for number in sorted(self._trials)]
            self._live.update(trials_text(rows, self._metric, in_full=False), refresh=True)
            return
        console.print(trial_line(trial, self._metric), highlight=False, markup=False, soft_wrap=True)

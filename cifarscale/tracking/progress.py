"""Progress for people: a live bar on a terminal or in a notebook, plain lines elsewhere."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Self

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from cifarscale.log import console, shows_live

SECONDS_BETWEEN_LINES = 10


class TrainingProgress:
    """Shows step, a few values, throughput and the time that is left."""

    def __init__(self, name: str, max_steps: int, shown: tuple[str, ...]) -> None:
        self._name, self._max_steps, self._shown = name, max_steps, shown
        self._live = shows_live()
        self._last_line = 0.0
        self._bar = Progress(
            TextColumn(name, markup=False),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn("{task.fields[values]}", markup=False),
            TimeRemainingColumn(compact=True),
            console=console,
            disable=not self._live,
        )
        self._task = self._bar.add_task(name, total=max_steps, values="")

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def start_at(self, step: int) -> None:
        self._bar.update(self._task, completed=step)

    def trained(self, step: int, values: dict[str, float]) -> None:
        """Shows the newest values; without a terminal at most a line every SECONDS_BETWEEN_LINES."""
        rate = values["images_per_second"]
        text = "  ".join(f"{key} {values[key]:.3f}" for key in self._shown)
        text += f"  {rate:,.0f} images/s" if rate else ""
        if self._live:
            self._bar.update(self._task, completed=step, values=text)
            return
        now = time.monotonic()
        if now - self._last_line < SECONDS_BETWEEN_LINES and step < self._max_steps:
            return
        self._last_line = now
        if rate:  # which is not known of a start's first steps
            text += f"  ETA {_clock((self._max_steps - step) * (values['images'] / step) / rate)}"
        console.print(f"{self._name}  step {step:,}/{self._max_steps:,}  {text}", highlight=False, soft_wrap=True)

    def evaluated(self, step: int, values: dict[str, float]) -> None:
        """A line that stays."""
        text = "  ".join(f"{key} {value:.4f}" for key, value in values.items())
        console.print(f"{self._name}  step {step:,}  {text}", highlight=False, soft_wrap=True)


def _clock(seconds: float) -> str:
    """[D-]HH:MM:SS, as SLURM writes times."""
    days, rest = divmod(round(seconds), 86_400)
    return (f"{days}-" if days else "") + time.strftime("%H:%M:%S", time.gmtime(rest))


@contextmanager
def counting(what: str, total: int, shown: bool) -> Iterator[Callable[[int], None]]:
    """Shows how far a count has come: a live bar on a terminal, a plain line now and then elsewhere.

    Yields: what to call with each further number that is done.
    """
    done, last_line = 0, time.monotonic()
    live = shows_live()
    columns = TextColumn(what, markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(compact=True)
    with Progress(*columns, console=console, disable=not (shown and live), transient=True) as bar:
        task = bar.add_task(what, total=total)

        def advance(number: int) -> None:
            nonlocal done, last_line
            done += number
            bar.update(task, completed=done)
            if shown and not live and time.monotonic() - last_line > SECONDS_BETWEEN_LINES:
                last_line = time.monotonic()
                console.print(f"{what}  {done:,}/{total:,}", highlight=False)

        yield advance

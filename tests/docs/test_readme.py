"""A newcomer's way: the commands of the README, from top to bottom. The first is started as users start it."""

from collections.abc import Callable
from pathlib import Path

from documents import HERE, README, furnish, run_commands

from cifarscale.data.source import Source


def test_its_commands_run_in_order(source: Source, tmp_path: Path, preloaded: Callable[[], str]) -> None:
    furnish(tmp_path, source)
    first, *others = README.commands(HERE)
    run_commands([first], tmp_path)
    run_commands(others, tmp_path, preloaded)

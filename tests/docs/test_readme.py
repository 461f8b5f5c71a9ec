"""A newcomer's way: the commands of the README, from top to bottom, each started as users start it."""

from pathlib import Path

from documents import HERE, README, furnish, run_commands

from cifarscale.data.source import Source


def test_its_commands_run_in_order(source: Source, tmp_path: Path) -> None:
    furnish(tmp_path, source)
    run_commands(README.commands(HERE), tmp_path)

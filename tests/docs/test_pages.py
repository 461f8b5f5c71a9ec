"""The commands of each other page run, in order, in a folder of their own."""

from collections.abc import Callable
from pathlib import Path

import pytest
from documents import EXAMPLE, HERE, PAGES, README, Page, furnish, run_commands

from cifarscale.data.source import Source

LONG = ("docs/extending.md", "docs/sweeps.md", "docs/generators.md", "docs/scripts.md")
WITH_COMMANDS = [page for page in PAGES if page not in (README, EXAMPLE) and page.commands(HERE)]


@pytest.mark.parametrize(
    "page",
    [pytest.param(page, marks=pytest.mark.thorough if page.name in LONG else ()) for page in WITH_COMMANDS],
    ids=lambda page: page.name,
)
def test_its_commands_run_in_order(page: Page, source: Source, tmp_path: Path, preloaded: Callable[[], str]) -> None:
    if any("wandb" in command or "dashboard" in command for command in page.commands(HERE)):
        pytest.importorskip("wandb")
    furnish(tmp_path, source)
    run_commands(page.commands(HERE), tmp_path, preloaded)

"""The commands of the pages that want a SLURM run on one, of two nodes on this machine, which they bring up."""

import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from documents import ON_SLURM, PAGES, README, Page, furnish, run_commands

from cifarscale.data.source import Source

pytestmark = pytest.mark.slurm


@pytest.fixture
def folder(script: Callable[..., Any]) -> Iterator[Path]:
    """A folder with a short path, as the sockets of a test cluster need it; no cluster is left running in it."""
    folder = Path(tempfile.mkdtemp(prefix="docs-", dir="/tmp"))
    yield folder
    done = script("down", "--folder", folder / ".testcluster")
    assert done.returncode == 0, done.stderr
    shutil.rmtree(folder)


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, marks=() if page == README else pytest.mark.thorough)
        for page in PAGES
        if page.commands(ON_SLURM)
    ],
    ids=lambda page: page.name,
)
def test_the_commands_of_a_page_run_on_slurm(
    page: Page, source: Source, folder: Path, preloaded: Callable[[], str]
) -> None:
    furnish(folder, source)
    run_commands(page.commands(ON_SLURM), folder, preloaded)

"""A sweep of tiny trainings."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from runs import wait_until
from sweep_runs import Sweep, plasma, started_for


@pytest.fixture
def sweep(tmp_path: Path, shards: Path) -> Iterator[Sweep]:
    """A sweep, after which nothing of Ray is left."""
    sweep = Sweep(tmp_path, shards)
    before = plasma()
    yield sweep
    sweep.end()
    wait_until(lambda: not started_for(sweep.path), "processes are left")
    wait_until(lambda: plasma() <= before, "files are left in shared memory")

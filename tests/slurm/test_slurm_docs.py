"""The commands of the pages that want a cluster, run on one."""

import subprocess
from pathlib import Path
from typing import Any

import pytest
from docs_runner import commands, run_page, sandbox
from slurm_jobs import slurm

pytestmark = pytest.mark.slurm


@pytest.mark.parametrize("page", ["README.md", "slurm/README.md", "docs/sweeps.md"])
def test_every_command_of_a_page_runs(page: str, cluster: Any, tmp_path: Path, shards: Path) -> None:
    assert commands(page)
    environment = sandbox(tmp_path / "here", shards) | cluster.environment
    try:
        run_page(page, tmp_path / "here", environment)
    finally:
        for job in slurm(cluster, "squeue", "-h", "-o", "%A").split():
            subprocess.run(["scancel", job], env=environment, check=False)

"""Some faults at random moments; `python tests/stress.py` injects many more."""

import random
import time
from pathlib import Path

import pytest
from stress import make_reference, stress_here

pytestmark = pytest.mark.distributed


@pytest.mark.thorough
def test_runs_survive_what_happens_to_them(shards: Path, tmp_path: Path) -> None:
    seed = time.strftime("%Y-%m-%d")
    tally = stress_here(tmp_path, shards, make_reference(tmp_path, shards), 5, random.Random(seed), patience_s=300)
    assert not tally.wrong, f"seed {seed}"

"""Times that the ranks of one process group take, over gloo on this machine."""

import json
import sys
import tempfile
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch.distributed as dist

sys.path.insert(0, str(Path(__file__).parents[1]))
from processes import run_ranks

Times = dict[str, list[float]]
"""Milliseconds of each way, in turn."""


def rank_times(measure: Callable[..., Times], world_size: int, *arguments: Any) -> Times:
    """What `measure(rank, *arguments)` returns on rank 0, when every rank has called it."""
    with tempfile.TemporaryDirectory() as folder:
        run_ranks(_in_group, world_size, world_size, folder, measure, arguments)
        times: Times = json.loads(Path(folder, "times").read_text(encoding="utf-8"))
    return times


def _in_group(rank: int, world_size: int, folder: str, measure: Callable[..., Times], arguments: Any) -> None:
    store = dist.FileStore(f"{folder}/store", world_size)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world_size, timeout=timedelta(seconds=300))
    times = measure(rank, *arguments)
    if rank == 0:
        Path(folder, "times").write_text(json.dumps(times), encoding="utf-8")
    dist.destroy_process_group()

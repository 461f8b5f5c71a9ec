"""What a rank runs: a call, in a process that a launcher has forked or in a task of SLURM's."""

import importlib
import os
import sys
from pathlib import Path
from typing import Any

from cifarscale.launch.call import Call
from cifarscale.launch.run import run
from cifarscale.log import configure_logging
from cifarscale.runs.options import RunOptions


def run_prepared(run_dir: str, options: dict[str, Any]) -> None:
    """`launch.run.run` with plain values."""
    run(Path(run_dir), RunOptions.from_plain(options))


def run_call(call: Call) -> None:
    """Runs a call as the rank that the environment names."""
    sys.argv = call.command
    configure_logging(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]), call.debug)
    module, _, name = call.function.partition(":")
    getattr(importlib.import_module(module), name)(**call.arguments)

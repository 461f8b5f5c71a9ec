"""What a rank runs: `python -m cifarscale.cluster.worker` for a local job, `run_call` in a task of SLURM's."""

import ctypes
import json
import os
import signal
import sys
import tomllib
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cifarscale.cluster.call import Call
from cifarscale.cluster.failures import LOGS_VARIABLE, report_failure
from cifarscale.cluster.local import CALL_VARIABLE
from cifarscale.cluster.probe import probe as probe_node
from cifarscale.config.distance import FidJob
from cifarscale.config.load import parse_job
from cifarscale.config.recipe import Recipe
from cifarscale.config.sweep import SweepJob
from cifarscale.errors import CifarscaleError
from cifarscale.inference import evaluate_run, measure_images
from cifarscale.log import configure_logging
from cifarscale.run import Placement, run_job

_PR_SET_PDEATHSIG = 1


def train(recipe: str, run_dir: str, placement: dict[str, Any]) -> None:
    """`recipe` is the resolved recipe as TOML."""
    parsed = parse_job(tomllib.loads(recipe), "recipe")
    assert isinstance(parsed, Recipe)
    run_job(parsed, Path(run_dir), Placement.from_plain(placement))


def evaluate(run_dir: str, split: str, placement: dict[str, Any], out: str) -> None:
    evaluate_run(Path(run_dir), split, Placement.from_plain(placement), Path(out))


def fid(job: str, shards: str | None, device: str, out: str, save: str | None) -> None:
    """`job` is the job as TOML."""
    parsed = parse_job(tomllib.loads(job), "job")
    assert isinstance(parsed, FidJob)
    measure_images(parsed, Path(shards) if shards else None, device, Path(out), Path(save) if save else None)


def sweep(recipe: str, run_dir: str, shards: str) -> None:
    """One rank a node: rank 0 runs the sweep, and Ray runs its trials on all of them. `recipe` is the sweep as TOML."""
    from cifarscale.cluster.sweep_task import sweep_on_nodes

    parsed = parse_job(tomllib.loads(recipe), "recipe")
    assert isinstance(parsed, SweepJob)
    sweep_on_nodes(parsed, Path(run_dir), Path(shards))


def probe(folder: str, shards: str | None, device: str, meeting_s: float) -> None:
    probe_node(Path(folder), Path(shards) if shards else None, device, meeting_s)


_FUNCTIONS: dict[str, Callable[..., None]] = {
    "train": train,
    "evaluate": evaluate,
    "fid": fid,
    "sweep": sweep,
    "probe": probe,
}


def run_call(call: Call) -> None:
    """Runs a call as the rank that the environment names."""
    sys.argv = call.command
    configure_logging(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]), call.debug)
    _FUNCTIONS[call.function](**call.arguments)


def _end_with_launcher() -> None:
    """Has the kernel kill this process when the launcher dies, however it does."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def main() -> int:
    _end_with_launcher()
    try:
        run_call(Call(**json.loads(os.environ[CALL_VARIABLE])))
    except Exception as error:
        if not isinstance(error, CifarscaleError):
            # The others print to this file anyway; rank 0 spares the terminal what is mostly another rank's failure.
            with Path(os.environ[LOGS_VARIABLE], f"rank-{os.environ['RANK']}.log").open("a") as log:
                traceback.print_exc(file=log)
        return report_failure(error)
    return 0


if __name__ == "__main__":
    sys.exit(main())

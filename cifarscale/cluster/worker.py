"""One rank of a local job: `python -m cifarscale.cluster.worker`, started by `cluster.local`."""

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

from cifarscale.cluster.local import tell_failure
from cifarscale.config.distance import FidJob
from cifarscale.config.load import parse_job
from cifarscale.config.recipe import Recipe
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


def evaluate(run_dir: str, split: str, placement: dict[str, Any]) -> None:
    evaluate_run(Path(run_dir), split, Placement.from_plain(placement))


def fid(job: str, shards: str | None, device: str, out: str, save: str | None) -> None:
    """`job` is the job as TOML."""
    parsed = parse_job(tomllib.loads(job), "job")
    assert isinstance(parsed, FidJob)
    measure_images(parsed, Path(shards) if shards else None, device, Path(out), Path(save) if save else None)


_FUNCTIONS: dict[str, Callable[..., None]] = {"train": train, "evaluate": evaluate, "fid": fid}


def _end_with_launcher() -> None:
    """Has the kernel kill this process when the launcher dies, however it does."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def main() -> int:
    _end_with_launcher()
    call = json.loads(os.environ["CIFARSCALE_CALL"])
    sys.argv = call["command"]  # what the user typed, for the run's environment.json
    configure_logging(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]), call["debug"])
    try:
        _FUNCTIONS[call["function"]](**call["arguments"])
    except Exception as error:
        if not isinstance(error, CifarscaleError):
            # The others print to this file anyway; rank 0 spares the terminal what is mostly another rank's failure.
            with Path(os.environ["CIFARSCALE_LOGS"], f"rank-{os.environ['RANK']}.log").open("a") as log:
                traceback.print_exc(file=log)
        return tell_failure(error)
    return 0


if __name__ == "__main__":
    sys.exit(main())

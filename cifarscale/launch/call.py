"""What every rank of a job runs, as plain data that crosses to another process or into a queue."""

import logging
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cifarscale.config.distance import DistanceRecipe
from cifarscale.config.load import recipe_toml
from cifarscale.config.recipe import TrainingRecipe

if TYPE_CHECKING:
    from cifarscale.prepare import RunOptions


@dataclass(frozen=True)
class Call:
    """What each rank calls.

    Attributes:
        function: as MODULE:NAME.
        arguments: plain values.
        command: what the user typed, for the run's environment.json.
        debug: whether debug messages are shown.
    """

    function: str
    arguments: dict[str, Any]
    command: list[str] = field(default_factory=lambda: list(sys.argv))
    debug: bool = field(default_factory=lambda: logging.getLogger("cifarscale").isEnabledFor(logging.DEBUG))

    @property
    def device(self) -> str:
        """Where it computes: `cpu`, `cuda` or `auto`."""
        return str(self.arguments.get("options", self.arguments).get("device", "cpu"))


def training(recipe: TrainingRecipe, run_dir: Path, options: "RunOptions") -> Call:
    """Trains a resolved recipe."""
    arguments = {"recipe": recipe_toml(recipe), "run_dir": str(run_dir), "options": options.as_plain()}
    return Call("cifarscale.launch.worker:train", arguments)


def evaluation(run_dir: Path, split: str, options: "RunOptions", out: Path) -> Call:
    """Evaluates the classifier of a run."""
    arguments = {"run_dir": str(run_dir), "split": split, "options": options.as_plain(), "out": str(out)}
    return Call("cifarscale.launch.worker:evaluate", arguments)


def measurement(job: DistanceRecipe, shards: Path | None, device: str, out: Path, save: Path | None = None) -> Call:
    """Compares images with real ones."""
    arguments = {"job": recipe_toml(job), "shards": str(shards) if shards else None, "device": device}
    return Call("cifarscale.launch.worker:fid", arguments | {"out": str(out), "save": str(save) if save else None})

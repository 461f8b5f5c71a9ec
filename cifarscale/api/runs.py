"""Runs in scripts and notebooks: train one, or load it from its folder, and use what it has trained."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cifarscale.config.load import load_recipe, load_training_recipe, require_task, with_values
from cifarscale.config.ranks import batch_size_per_rank
from cifarscale.config.recipe import TrainingRecipe
from cifarscale.launch.local import run_here, run_once
from cifarscale.launch.run import prepare
from cifarscale.runs.options import RunOptions
from cifarscale.runs.run_folder import RunFolder, folder_of
from cifarscale.tracking.metrics import read_metrics

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray


class Run:
    """A run in its folder.

    Attributes:
        path: the folder.
        recipe: what it computes, with every default written out.
    """

    def __init__(self, path: Path, recipe: TrainingRecipe) -> None:
        self.path, self.recipe = path, recipe

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r})"

    @property
    def result(self) -> dict[str, Any] | None:
        """What is in result.json; None while the run is not complete."""
        return RunFolder(self.path).result()

    def metrics(self) -> list[dict[str, Any]]:
        """The lines of the log, each with its `step`: `pandas.DataFrame(run.metrics())`."""
        return [dict(line) for line in read_metrics(RunFolder(self.path).metrics)]

    def network(self, device: str = "auto") -> "torch.nn.Module":
        """What was trained, in evaluation mode: the moving average of the weights where the recipe keeps one.

        Returns: of a classifier a module from images (N, 3, H, W), uint8 or floats from 0 to 1, to logits
            (N, num_classes), with the normalisation in it; of a generator the network itself.
        Raises: RunError or CheckpointError if nothing is trained yet.
        """
        from cifarscale.distributed.device import pick_device
        from cifarscale.tasks.load import load_trained
        from cifarscale.tasks.trained import Normalised, TrainedClassifier

        trained = load_trained(self.path, pick_device(device))
        if isinstance(trained, TrainedClassifier):
            return Normalised(trained).eval()
        return trained.network

    def predict(self, images: Sequence[str | Path], device: str = "auto") -> list[list[tuple[str, float]]]:
        """For each image file the five most probable classes with their probabilities, most probable first.

        Raises: RunError if this is no classifier's run; DataError for a file that is no image.
        """
        from cifarscale.distributed.device import pick_device
        from cifarscale.tasks.load import load_classifier

        return load_classifier(self.path, pick_device(device)).predict([Path(image) for image in images])

    def generate(
        self, count: int, seed: int = 0, class_name: str | None = None, device: str = "auto"
    ) -> "NDArray[np.uint8]":
        """Images (count, H, W, 3); image i is a function of the run, the seed, the class and i alone.

        Raises: RunError if this is no generator's run, or its generator does not know the class.
        """
        from cifarscale.distributed.device import pick_device
        from cifarscale.tasks.load import load_generator

        return load_generator(self.path, pick_device(device)).generate(seed, count, class_name)


def train(
    recipe: str | Path,
    *,
    set: Mapping[str, Any] | None = None,
    seed: int | None = None,
    data: str | Path | None = None,
    nproc: int = 1,
    device: str = "auto",
    run_dir: str | Path | None = None,
) -> Run:
    """Trains a recipe on this machine, or goes on with its run; returns at once if that is complete.

    Ctrl-C saves and raises Interrupted; the same call goes on.

    Args:
        recipe: a name, as in `cifarscale jobs list`, or a .toml file.
        set: dotted keys of the recipe that are changed, with their values.
        seed: shorthand for that key.
        data: a data set or a folder of shards; None for the recipe's own.
        nproc: ranks. With one it is this process.
        device: `auto`, `cpu` or `cuda`.
        run_dir: None for the recipe's own, `runs/NAME-HASH`.
    Raises: CifarscaleError with the text that the command line prints.
    """
    changes = {**(set or {}), **({} if seed is None else {"seed": seed})}
    loaded = load_training_recipe(str(recipe), _overrides(changes))
    batch_size_per_rank(loaded, nproc)
    folder = Path(run_dir) if run_dir else folder_of(str(recipe), loaded)
    prepared = prepare(loaded, folder, str(data) if data else None, RunOptions(device=device))
    if prepared.result() is None:
        run_here(prepared, nproc)
    return load(prepared.run_dir)


def load(run_dir: str | Path) -> Run:
    """A run from its folder. Raises: RunError or ConfigError if it is none of a training."""
    path = Path(run_dir)
    return Run(path, RunFolder(path).load_training_recipe())


def distance(
    images: Run | str | Path,
    *,
    against: str | Path = "train",
    features: str = "inception",
    set: Mapping[str, Any] | None = None,
    data: str | Path | None = None,
    nproc: int = 1,
    device: str = "auto",
) -> dict[str, Any]:
    """How close images are to real ones, as `cifarscale fid` has it.

    Args:
        images: a generator's run, a folder of images, or a split of the data set.
        against: the real images: a split, a folder, or statistics in a .npz file.
        features: `inception`, or `cnn:RUN` for those of a classifier that was trained here.
        set: further keys of the recipe `fid`, such as `distance.num_samples`.
        data, nproc, device: as in `train`.
    Raises: CifarscaleError with the text that the command line prints.
    """
    recipe = load_recipe("fid", _overrides(set or {}))
    require_task(recipe, "distance", "fid")
    path = images.path if isinstance(images, Run) else images
    recipe = with_values(recipe, images=str(path), distance__against=str(against), distance__features=features)
    return run_once(recipe, str(data) if data else None, RunOptions(device=device), nproc)


def _overrides(changes: Mapping[str, Any]) -> list[str]:
    """As `--set` takes them."""
    return [f"{key}={json.dumps(value)}" for key, value in changes.items()]

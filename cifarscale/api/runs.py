"""Runs in scripts and notebooks, loaded from their folders: what came of them, and what they have trained."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from cifarscale.config.load import load_training_recipe
from cifarscale.config.recipe import Recipe
from cifarscale.errors import ConfigError, RunError, short_path
from cifarscale.runs.run_folder import RunFolder
from cifarscale.tracking.metrics import read_metrics

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray


class Run:
    """A run in its folder.

    Attributes:
        path: the folder.
        recipe: what it computes, with every default written out; `train` and `submit` take it.
        was_complete: whether `train` found it complete, and computed nothing.
    """

    def __init__(self, path: Path, recipe: Recipe, was_complete: bool = False) -> None:
        self.path, self.was_complete = path.absolute(), was_complete
        self.recipe: Any = recipe

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self.path)!r})"

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
        from cifarscale.distributed.cpu_pool import settings_kept
        from cifarscale.distributed.device import pick_device
        from cifarscale.tasks.load import load_trained
        from cifarscale.tasks.trained import Normalised, TrainedClassifier

        with settings_kept():
            trained = load_trained(self.path, pick_device(device))
        if isinstance(trained, TrainedClassifier):
            return Normalised(trained).eval()
        return trained.network

    def predict(
        self, images: "str | Path | Sequence[str | Path] | NDArray[Any] | torch.Tensor", device: str = "auto"
    ) -> list[list[tuple[str, float]]]:
        """For each image the five most probable classes with their probabilities, most probable first.

        Args:
            images: files; or pixels, uint8 or floats from 0 to 1: an array (N, H, W, 3) or a tensor (N, 3, H, W).
        Raises: RunError if this is no classifier's run; DataError for a file that is no image, or pixels of another
            shape than the classifier takes.
        """
        from cifarscale.distributed.cpu_pool import settings_kept
        from cifarscale.distributed.device import pick_device
        from cifarscale.tasks.load import load_classifier

        with settings_kept():
            trained = load_classifier(self.path, pick_device(device))
            if not isinstance(images, str | Path) and hasattr(images, "ndim"):
                return trained.predict_pixels(images)
            paths = [images] if isinstance(images, str | Path) else images
            return trained.predict([Path(path) for path in paths])

    def generate(
        self, count: int, seed: int = 0, class_name: str | None = None, device: str = "auto"
    ) -> "NDArray[np.uint8]":
        """Images (count, H, W, 3); image i is a function of the run, the seed, the class and i alone.

        Raises: RunError if this is no generator's run, or its generator does not know the class.
        """
        from cifarscale.distributed.cpu_pool import settings_kept
        from cifarscale.distributed.device import pick_device
        from cifarscale.tasks.load import load_generator

        if count < 1:
            raise ConfigError(f"count = {count} is not valid; it takes at least 1")
        with settings_kept():
            return load_generator(self.path, pick_device(device)).generate(seed, count, class_name)

    def export(self, path: str | Path, *, pixels: Literal["float", "uint8"] = "float", force: bool = False) -> Path:
        """Writes what was trained to a file that is read without this package, as `cifarscale export` does.

        Args:
            path: a .pt2 (torch.export) or .onnx file for the network with its normalisation, a .safetensors file for
                its weights.
            pixels: of images that go in or come out: floats from 0 to 1, or whole numbers from 0 to 255.
            force: whether to replace a file that is there.
        Raises: ConfigError for a name or a package that is missing; RunError if the network cannot be exported.
        """
        from cifarscale.tasks.export import export

        return export(self.path, Path(path), pixels, force).path


class Sweep(Run):
    """A sweep in its folder; its trials are runs below it."""

    @property
    def best(self) -> Recipe:
        """The recipe of the best trial, on all training samples: `train` and `submit` take it.

        Raises: RunError if no trial has produced a result.
        """
        from cifarscale.sweeps.trials import SweepFolder

        path = SweepFolder(self.path).best
        if not path.is_file():
            raise RunError(f"{short_path(self.path)} has no best trial: none has produced a result by now")
        return load_training_recipe(str(path), of_run=True)

    def trials(self) -> list[dict[str, Any]]:
        """The trials with state, step, metric, changed keys and run folder: `pandas.DataFrame(sweep.trials())`.

        In the order of their numbers, also while the sweep runs.
        """
        from cifarscale.sweeps.trials import SweepFolder

        folder = SweepFolder(self.path)
        folder.load()
        return [
            {
                "trial": trial.number,
                "state": trial.state,
                "step": trial.step,
                self.recipe.metric: trial.value,
                **trial.overrides,
                "run": str(folder.run(trial).path) if trial.folder else None,
                "reason": trial.reason,
            }
            for trial in folder.trials
        ]


def load(run_dir: str | Path) -> Run:
    """A run, or a `Sweep`, from its folder. Raises: RunError or ConfigError if it is none."""
    path = Path(run_dir)
    recipe = RunFolder(path).load_recipe()
    return (Sweep if recipe.task == "sweep" else Run)(path, recipe)

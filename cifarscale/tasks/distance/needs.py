"""What a comparison of images needs, as far as can be known before torch is imported."""

from pathlib import Path

from cifarscale.config.distance import DistanceConfig
from cifarscale.data.manifest import Manifest
from cifarscale.errors import ConfigError, typed
from cifarscale.runs.run_folder import RunFolder
from cifarscale.tasks.base import task_of
from cifarscale.tasks.training import TrainingTask


def is_split(name: str) -> bool:
    """Whether this is to be a split of a data set, rather than a folder or a file of statistics."""
    return not name.endswith(".npz") and not Path(name).is_dir()


def check_features(config: DistanceConfig, of_sweep: bool = False) -> None:
    """Checks that that is here by whose features images are to be compared.

    Args:
        of_sweep: whether trials will need it, side by side: weights are fetched now, and a run must be complete.
    Raises: ConfigError or EvaluationError if it is not.
    """
    kind, _, run = config.features.partition(":")
    folder = RunFolder(Path(run))
    if kind == "inception" and of_sweep:
        from cifarscale.evaluation.features import inception_weights

        inception_weights(Path(config.weights) if config.weights else None)
    elif kind == "cnn" and (folder.result() is None if of_sweep else folder.saved_step() is None):
        raise ConfigError(
            f"distance.features = 'cnn:{run}': there is no {'complete' if of_sweep else 'trained'} run in {run}. "
            f"Run: cifarscale train resnet --run-dir {typed(run)}; or name another with --set "
            f"{'set.' if of_sweep else ''}distance.features=cnn:RUN"
        )
    require_features(config)


def require_features(config: DistanceConfig) -> None:
    """Raises: ConfigError if the classifier that is named has no features, as a user's own may have none."""
    kind, _, run = config.features.partition(":")
    folder = RunFolder(Path(run))
    if kind != "cnn" or not folder.recipe.exists():
        return
    recipe = folder.load_training_recipe()
    task = task_of(recipe)
    assert isinstance(task, TrainingTask)
    if not task.gives_features(recipe, Manifest.load(folder.path)):
        raise ConfigError(lacks_features(run))


def lacks_features(run: str) -> str:
    """What to say of a run whose network has none."""
    return f"the network of {run} has no method `features`, which images are compared by; name another classifier"


def absolute_paths(config: DistanceConfig) -> dict[str, str]:
    """The paths that it names as absolute ones, by dotted key: it may be read in another folder."""
    kind, _, run = config.features.partition(":")
    paths = {"distance.against": config.against, "distance.weights": config.weights}
    changes = {key: str(Path(path).absolute()) for key, path in paths.items() if path and not is_split(path)}
    return changes | ({"distance.features": f"{kind}:{Path(run).absolute()}"} if run else {})

"""Trained networks, as a run's newest checkpoint holds them."""

from pathlib import Path
from typing import Any

import torch

from cifarscale.config.code import require_imported
from cifarscale.data.manifest import Manifest
from cifarscale.errors import CheckpointError, RunError, short_path, typed
from cifarscale.runs.checkpoint import load_checkpoint, newest_checkpoint
from cifarscale.runs.run_folder import RunFolder
from cifarscale.tasks.base import task_of
from cifarscale.tasks.trained import Trained, TrainedClassifier, TrainedGenerator
from cifarscale.tasks.training import TrainingTask


def load_trained(run_dir: Path, device: torch.device, wanted: str = "") -> Trained:
    """What is in a run folder's newest checkpoint.

    Args:
        wanted: `classifier` or `generator`; empty for anything.
    Raises: RunError if something else is trained there, or nothing; CheckpointError if it has no checkpoint yet;
        ConfigError if its code is not imported, since this user has not trained it.
    """
    recipe = RunFolder(run_dir).load_training_recipe()
    require_imported(recipe.code, recipe.modules)
    task = task_of(recipe)
    assert isinstance(task, TrainingTask)
    if wanted not in ("", task.trains):
        raise RunError(f"{short_path(run_dir)} is a run of task {recipe.task!r}, and this needs a {wanted}'s")
    return task.load(recipe, Manifest.load(run_dir), _newest_state(run_dir, device), device)


def load_classifier(run_dir: Path, device: torch.device) -> TrainedClassifier:
    """`load_trained` for a classifier."""
    trained = load_trained(run_dir, device, "classifier")
    assert isinstance(trained, TrainedClassifier)
    return trained


def load_generator(run_dir: Path, device: torch.device) -> TrainedGenerator:
    """`load_trained` for a generator."""
    trained = load_trained(run_dir, device, "generator")
    assert isinstance(trained, TrainedGenerator)
    return trained


def _newest_state(run_dir: Path, device: torch.device) -> dict[str, Any]:
    folder = RunFolder(run_dir)
    path = newest_checkpoint(folder.checkpoints)
    if path is None and folder.saved_step() is not None and folder.result() is not None:
        raise CheckpointError(
            f"{short_path(run_dir)} is complete, but its weights are lost: all of its checkpoints are damaged. Remove "
            f"{folder.result_file.name} and checkpoints/ from it, and train it again: "
            f"cifarscale train {typed(short_path(folder.recipe))}"
        )
    if path is None:
        again = typed(short_path(folder.recipe))
        raise CheckpointError(f"{short_path(run_dir)} has no checkpoint yet. Run: cifarscale train {again}")
    return load_checkpoint(path, device)

"""Trained networks, as a run's newest checkpoint holds them."""

import difflib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from cifarscale.config.cnn import ClassifierRecipe
from cifarscale.config.dcgan import GanRecipe
from cifarscale.data.manifest import Manifest
from cifarscale.errors import CheckpointError, RunError
from cifarscale.files import typed
from cifarscale.models.dcgan import Generator
from cifarscale.runs.checkpoint import has_checkpoints, load_checkpoint, newest_checkpoint
from cifarscale.runs.run_folder import RunFolder
from cifarscale.training.cnn import build_classifier
from cifarscale.training.dcgan import build_networks


@dataclass(frozen=True)
class TrainedClassifier:
    """A run's classifier after `step` steps: the moving average of its weights where the recipe keeps one."""

    recipe: ClassifierRecipe
    manifest: Manifest
    network: nn.Module
    step: int
    device: torch.device


@dataclass(frozen=True)
class TrainedGenerator:
    """A run's generator after `step` steps, in evaluation mode: the moving average where the recipe keeps one."""

    recipe: GanRecipe
    manifest: Manifest
    network: Generator
    step: int
    device: torch.device

    def label(self, class_name: str) -> int:
        """The number of a class.

        Raises: RunError if the generator is unconditional, or has no such class.
        """
        names = self.manifest.fine_names
        if not self.recipe.model.conditional:
            raise RunError(
                f"class {class_name!r}: this generator is unconditional; train a conditional one with "
                "--set model.conditional=true"
            )
        if class_name in names:
            return names.index(class_name)
        near = difflib.get_close_matches(class_name, names, n=1)
        meant = f", did you mean {near[0]!r}?" if near else ""
        raise RunError(f"unknown class {class_name!r}{meant}; there are: {', '.join(names)}")


def load_classifier(run_dir: Path, device: torch.device) -> TrainedClassifier:
    """The classifier in a run folder's newest checkpoint.

    Raises: RunError if the folder is no classifier's run; CheckpointError if it has no checkpoint yet.
    """
    recipe = RunFolder(run_dir).load_training_recipe()
    if not isinstance(recipe, ClassifierRecipe):
        raise RunError(f"{run_dir} is a run of task {recipe.task!r}, and this needs a classifier's (task 'classifier')")
    state = _newest_state(run_dir, device)
    manifest = Manifest.load(run_dir)
    network = build_classifier(recipe, manifest, device)
    network.load_state_dict((state["averages"] or state["networks"])["classifier"])
    return TrainedClassifier(recipe, manifest, network.eval(), state["step"], device)


def load_generator(run_dir: Path, device: torch.device) -> TrainedGenerator:
    """The generator in a run folder's newest checkpoint.

    Raises: RunError if the folder is no DCGAN's run; CheckpointError if it has no checkpoint yet.
    """
    recipe = RunFolder(run_dir).load_training_recipe()
    if not isinstance(recipe, GanRecipe):
        raise RunError(f"{run_dir} is a run of task {recipe.task!r}, and this needs a generator's (task 'gan')")
    state = _newest_state(run_dir, device)
    manifest = Manifest.load(run_dir)
    generator, _ = build_networks(recipe, manifest, device)
    generator.load_state_dict((state["averages"] or state["networks"])["generator"])
    return TrainedGenerator(recipe, manifest, generator.eval(), state["step"], device)


def _newest_state(run_dir: Path, device: torch.device) -> dict[str, Any]:
    folder = RunFolder(run_dir)
    path = newest_checkpoint(folder.checkpoints)
    if path is None and has_checkpoints(folder.checkpoints) and folder.result() is not None:
        raise CheckpointError(
            f"{run_dir} is complete, but its weights are lost: all of its checkpoints are damaged. Remove "
            f"{folder.result_file.name} and checkpoints/ from it, and train it again: "
            f"cifarscale train {typed(folder.recipe)}"
        )
    if path is None:
        raise CheckpointError(f"{run_dir} has no checkpoint yet. Run: cifarscale train {typed(folder.recipe)}")
    return load_checkpoint(path, device)

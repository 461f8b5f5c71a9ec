"""What one does with a trained network: evaluate a classifier and ask it about images, draw from a generator."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import nn

from cifarscale.checkpoint import load_checkpoint, newest_checkpoint
from cifarscale.config.recipe import CnnRecipe, DcganRecipe
from cifarscale.cores import Cores
from cifarscale.data.dataset import Dataset
from cifarscale.data.manifest import Manifest
from cifarscale.data.shards import IMAGE_SIZE
from cifarscale.distributed import pick_device, process_group, ranks_from_environment
from cifarscale.errors import CheckpointError, DataError, RunError
from cifarscale.evaluation.accuracy import evaluate_classifier
from cifarscale.files import write_json_atomically
from cifarscale.run import Placement, RunFolder
from cifarscale.training.cnn import build_classifier, training_normalisation
from cifarscale.training.dcgan import build_networks, generate_images

TOP = 5


@dataclass(frozen=True)
class TrainedClassifier:
    """A run's classifier after `step` steps: the moving average of its weights where the recipe keeps one."""

    recipe: CnnRecipe
    manifest: Manifest
    network: nn.Module
    step: int
    device: torch.device


def load_classifier(run_dir: Path, device: torch.device) -> TrainedClassifier:
    """The classifier in a run folder's newest checkpoint.

    Raises: RunError if the folder is no classifier's run; CheckpointError if it has no checkpoint yet.
    """
    recipe = RunFolder(run_dir).load_recipe()
    if not isinstance(recipe, CnnRecipe):
        raise RunError(f"{run_dir} is a run of task {recipe.task!r}, and this needs a classifier's (task 'cnn')")
    state = _newest_state(run_dir, device)
    manifest = Manifest.load(run_dir)
    network = build_classifier(recipe, manifest, device)
    network.load_state_dict((state["averages"] or state["networks"])["classifier"])
    return TrainedClassifier(recipe, manifest, network.eval(), state["step"], device)


def generate(run_dir: Path, count: int, seed: int, device: torch.device) -> NDArray[np.uint8]:
    """Images (count, 32, 32, 3) from the generator of a run; image i depends on the run, the seed and i alone.

    Raises: RunError if the folder is no DCGAN's run; CheckpointError if it has no checkpoint yet.
    """
    recipe = RunFolder(run_dir).load_recipe()
    if not isinstance(recipe, DcganRecipe):
        raise RunError(f"{run_dir} is a run of task {recipe.task!r}, and this needs a generator's (task 'dcgan')")
    state = _newest_state(run_dir, device)
    generator, _ = build_networks(recipe, device)
    generator.load_state_dict((state["averages"] or state["networks"])["generator"])
    cores = Cores(apart=device.type == "cpu")
    images = generate_images(generator, seed, count, cores, device)
    return images.permute(0, 2, 3, 1).numpy()


def _newest_state(run_dir: Path, device: torch.device) -> dict[str, Any]:
    folder = RunFolder(run_dir)
    path = newest_checkpoint(folder.checkpoints)
    if path is None:
        raise CheckpointError(f"{run_dir} has no checkpoint yet. Run: cifarscale train {folder.recipe}")
    return load_checkpoint(path, device)


def evaluate_run(run_dir: Path, split: str, placement: Placement) -> dict[str, Any]:
    """Exact figures of a run's classifier on a split, on all ranks of this job; saved as `evaluation-SPLIT.json`.

    Returns: step, split, samples, top1, top5, loss, and accuracy by class and superclass name.
    """
    ranks = ranks_from_environment()
    device = pick_device(placement.device, ranks.local_rank)
    with process_group(ranks, device) as group:
        trained = load_classifier(run_dir, device)
        recipe, manifest = trained.recipe, trained.manifest
        samples = Dataset(placement.shards, recipe.data, device).split(split)
        normalise = training_normalisation(manifest, device)
        cores = Cores(apart=device.type == "cpu")
        accuracy = evaluate_classifier(trained.network, samples, normalise, group, cores, recipe.evaluation.batch_size)
        fine = torch.arange(len(manifest.fine_names))
        coarse = torch.tensor(manifest.coarse_of_fine)
        result = {
            "run": run_dir.name,
            "step": trained.step,
            "split": split,
            "samples": samples.num_samples,
            **accuracy.figures,
            "superclasses": _by_name(manifest.coarse_names, accuracy.per_group(coarse, len(manifest.coarse_names))),
            "classes": _by_name(manifest.fine_names, accuracy.per_group(fine, len(fine))),
        }
        if ranks.is_first:
            write_json_atomically(run_dir / f"evaluation-{split}.json", result)
        group.wait()
    return result


def predict(trained: TrainedClassifier, images: Sequence[Path]) -> list[list[tuple[str, float]]]:
    """For each image file the five most probable classes with their probabilities, most probable first.

    Raises: DataError if a file is not an image that Pillow opens.
    """
    pixels = torch.from_numpy(np.stack([_thumbnail(path) for path in images])).permute(0, 3, 1, 2)
    normalise = training_normalisation(trained.manifest, trained.device)
    with torch.inference_mode():
        probabilities = trained.network(normalise(pixels.to(trained.device))).softmax(1).cpu()
    names = trained.manifest.fine_names
    top = probabilities.topk(min(TOP, len(names)), dim=1)
    return [
        [(names[label], value) for label, value in zip(labels, values, strict=True)]
        for labels, values in zip(top.indices.tolist(), top.values.tolist(), strict=True)
    ]


def _thumbnail(path: Path) -> np.ndarray:
    """The middle square of an image at the classifier's size, (32, 32, 3) uint8; an image of that size as it is."""
    try:
        with Image.open(path) as image:
            upright = ImageOps.exif_transpose(image)
            if upright.mode.startswith("I;16"):  # Pillow would clip its 65,536 greys at 255, not scale them
                upright = upright.point(lambda value: value * (1 / 257))
            upright = upright.convert("RGB")
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise DataError(f"cannot read {path} as an image: {str(error).splitlines()[0]}") from error
    return np.array(ImageOps.fit(upright, (IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.LANCZOS))


def _by_name(names: Sequence[str], values: Sequence[float | None]) -> dict[str, float | None]:
    return dict(zip(names, values, strict=True))

"""What one does with a trained network: evaluate a classifier and ask it about images, draw from a generator."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps

from cifarscale.config.distance import DistanceRecipe
from cifarscale.data.dataset import Dataset
from cifarscale.data.images import read_image
from cifarscale.data.shards import IMAGE_SIZE
from cifarscale.distributed.cores import Cores
from cifarscale.distributed.group import pick_device, process_group
from cifarscale.distributed.ranks import ranks_from_environment
from cifarscale.evaluation.accuracy import evaluate_classifier
from cifarscale.files import write_json_atomically
from cifarscale.measure import images_of, open_reference
from cifarscale.prepare import RunOptions
from cifarscale.run import device_name
from cifarscale.runs.run_folder import RunFolder
from cifarscale.trained import TrainedClassifier, load_classifier, load_generator
from cifarscale.training.cnn import training_normalisation
from cifarscale.training.dcgan import generate_images, generated_images

TOP = 5


def generate(
    run_dir: Path, count: int, seed: int, device: torch.device, class_name: str | None = None
) -> NDArray[np.uint8]:
    """Images (count, 32, 32, 3) from the generator of a run; image i depends on the run, the seed and i alone.

    Args:
        class_name: what they are to show; without it a conditional generator's image i is of class i mod num_classes.
    Raises: RunError if the folder is no DCGAN's run, or its generator does not know the class; CheckpointError if it
        has no checkpoint yet.
    """
    trained = load_generator(run_dir, device)
    label = None if class_name is None else trained.label(class_name)
    cores = Cores(apart=device.type == "cpu")
    images = generate_images(trained.network, seed, count, cores, device, label)
    return images.permute(0, 2, 3, 1).numpy()


def evaluate_run(run_dir: Path, split: str, options: RunOptions, out: Path | None = None) -> dict[str, Any]:
    """Exact figures of a run's classifier on a split, on all ranks of this job.

    Args:
        out: where to write what this returns, as JSON; `evaluation-SPLIT.json` in the run's folder if None.

    Returns: step, split, samples, top1, top5, loss, and accuracy by class and superclass name.
    """
    ranks = ranks_from_environment()
    device = pick_device(options.device, ranks.local_rank)
    with process_group(ranks, device) as group:
        trained = load_classifier(run_dir, device)
        recipe, manifest = trained.recipe, trained.manifest
        samples = Dataset(options.shards, recipe.data, device).split(split)
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
            write_json_atomically(out or run_dir / f"evaluation-{split}.json", result)
        group.wait()
    return result


def measure_images(
    job: DistanceRecipe, shards: Path | None, wanted_device: str, out: Path | None = None, save: Path | None = None
) -> dict[str, Any]:
    """Compares a generator's images, or those of a folder or a split, with real ones, on all ranks of this job.

    Args:
        shards: where the splits of the real images lie; None if the job names none.
        wanted_device: `cpu`, `cuda` or `auto`.
        out: where to write what this returns, as JSON.
        save: where to save the statistics of the images, for another call to compare with.
    Returns: what was measured, and the figures.
    Raises: RunError, CheckpointError, DataError or EvaluationError, in one line.
    """
    ranks = ranks_from_environment()
    device = pick_device(wanted_device, ranks.local_rank)
    path, config = Path(job.images), job.distance
    with process_group(ranks, device) as group:
        cores = Cores(apart=device.type == "cpu")
        about: dict[str, Any] = {"images": str(path)}
        conditional = False
        if RunFolder(path).recipe.exists():
            trained = load_generator(path, device)
            images = generated_images(trained.network, job.seed, config.num_samples, device)
            conditional = trained.recipe.model.conditional
            about |= {"step": trained.step, "seed": job.seed}
            if shards is not None:
                Dataset(shards, trained.recipe.data, device)  # checks that it is the very data of the run
        else:
            images, _ = images_of(job.images, shards, device)
        reference = open_reference(
            config, shards, images.num_images, conditional, group, cores, device, shows_progress=True
        )
        started = time.perf_counter()
        figures = reference.figures(images, save)
        seconds = time.perf_counter() - started
        result = (
            about
            | figures
            | {
                "seconds": round(seconds, 1),
                "world_size": ranks.world_size,
                "device": device_name(device),
            }
        )
        if out is not None and ranks.is_first:
            write_json_atomically(out, result)
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
    fitted = ImageOps.fit(read_image(path), (IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.LANCZOS)
    return np.array(fitted)


def _by_name(names: Sequence[str], values: Sequence[float | None]) -> dict[str, float | None]:
    return dict(zip(names, values, strict=True))

"""What a run's classifier confuses, and what it finds hardest."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from cifarscale.config.cnn import ClassifierRecipe
from cifarscale.data.batches import EvaluationSplit
from cifarscale.data.dataset import Dataset
from cifarscale.distributed.cores import Cores
from cifarscale.distributed.group import Group
from cifarscale.distributed.ranks import Ranks
from cifarscale.errors import CifarscaleError
from cifarscale.evaluation.accuracy import evaluate_classifier
from cifarscale.report.parts import Picture, percent, picture
from cifarscale.report.shards import shards_of
from cifarscale.trained import TrainedClassifier, load_classifier
from cifarscale.training.cnn import training_normalisation

_HARDEST = 6
_EXAMPLES = 8
_CPU = torch.device("cpu")


@dataclass(frozen=True)
class Confusion:
    """How often each superclass was taken for which.

    Attributes:
        counts: rows are what it was, columns what it was taken for.
        of: what was looked at.
    """

    names: Sequence[str]
    counts: Sequence[Sequence[int]]
    of: str

    def share(self, row: int, column: int) -> float:
        return self.counts[row][column] / max(1, sum(self.counts[row]))


@dataclass(frozen=True)
class HardClass:
    """A class that is often missed, with what it was taken for most often, and the first of its images."""

    name: str
    superclass: str
    top1: float
    taken_for: str
    examples: Sequence[Picture]


@dataclass
class Mistakes:
    """What a page says of a classifier's mistakes; `note` says what is missing, and why."""

    confusion: Confusion | None = None
    hardest: list[HardClass] = field(default_factory=list)
    note: str = ""


def find_mistakes(run_dir: Path, recipe: ClassifierRecipe, data: str | None) -> Mistakes:
    """Runs the newest checkpoint's network over the split that the run was evaluated on."""
    split = "validation" if recipe.data.num_validation else "test"
    try:
        return _computed(run_dir, recipe, split, shards_of(recipe, data))
    except CifarscaleError as error:
        return Mistakes(_written(run_dir / "confusion-test.json"), note=str(error))


def _computed(run_dir: Path, recipe: ClassifierRecipe, split: str, shards: Path) -> Mistakes:
    trained = load_classifier(run_dir, _CPU)
    samples = Dataset(shards, recipe.data, _CPU).split(split)
    normalise = training_normalisation(trained.manifest, _CPU)
    size = recipe.evaluation.batch_size
    found = evaluate_classifier(trained.network, samples, normalise, Group(Ranks()), Cores(apart=True), size)
    manifest = trained.manifest
    number = len(manifest.fine_names)
    pairs = torch.bincount(found.labels * number + found.predictions, minlength=number**2).view(number, number)
    of = f"{samples.num_samples:,} images of the {split} split, after step {trained.step:,}"
    hardest = _hardest(trained, samples, found.labels, pairs)
    return Mistakes(Confusion(manifest.coarse_names, _by_superclass(pairs, manifest.coarse_of_fine), of), hardest)


def _by_superclass(pairs: torch.Tensor, superclass: Sequence[int]) -> list[list[int]]:
    """(classes, classes) counts summed over the classes of each superclass."""
    number = max(superclass) + 1
    member = torch.nn.functional.one_hot(torch.tensor(superclass), number)
    counts: list[list[int]] = (member.T @ pairs @ member).tolist()
    return counts


def _hardest(
    trained: TrainedClassifier, samples: EvaluationSplit, labels: torch.Tensor, pairs: torch.Tensor
) -> list[HardClass]:
    manifest = trained.manifest
    totals, right = pairs.sum(1), pairs.diagonal()
    present = [label for label in range(len(totals)) if totals[label]]
    hardest = sorted(present, key=lambda label: int(right[label]) / int(totals[label]))[:_HARDEST]
    rows = {label: (labels == label).nonzero().flatten()[:_EXAMPLES].tolist() for label in hardest}
    examples = _examples(trained, samples, [row for each in rows.values() for row in each], labels)
    found = []
    for label in hardest:
        wrong = pairs[label].clone()
        wrong[label] = 0
        likely = [int(i) for i in wrong.argsort(descending=True, stable=True)[:3] if wrong[i]]
        taken_for = ", ".join(
            f"{_words(manifest.fine_names[i])} {percent(int(wrong[i]) / int(totals[label]))}" for i in likely
        )
        found.append(
            HardClass(
                _words(manifest.fine_names[label]),
                _words(manifest.coarse_names[manifest.coarse_of_fine[label]]),
                int(right[label]) / int(totals[label]),
                taken_for,
                [examples[row] for row in rows[label]],
            )
        )
    return found


@torch.inference_mode()
def _examples(
    trained: TrainedClassifier, samples: EvaluationSplit, rows: Sequence[int], labels: torch.Tensor
) -> dict[int, Picture]:
    """Images of a split by their rows, with what they are taken for."""
    wanted, manifest = set(rows), trained.manifest
    pixels: dict[int, torch.Tensor] = {}
    for chunk in samples.chunks(Ranks(), 1000):
        pixels |= {row: chunk.images[i] for i, row in enumerate(chunk.rows.tolist()) if row in wanted}
    normalise = training_normalisation(manifest, _CPU)
    images = torch.stack([pixels[row] for row in rows])
    shares, predictions = trained.network(normalise(images)).softmax(1).max(1)
    found = {}
    for row, share, prediction in zip(rows, shares.tolist(), predictions.tolist(), strict=True):
        true, taken = _words(manifest.fine_names[int(labels[row])]), _words(manifest.fine_names[prediction])
        found[row] = picture(
            pixels[row].permute(1, 2, 0).numpy(),
            f"An image of {true}, taken for {taken}",
            f"{taken} {share:.0%}",
            good=prediction == int(labels[row]),
        )
    return found


def _written(path: Path) -> Confusion | None:
    """What the run itself wrote at its end; None if it is not there."""
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
        counts = _by_superclass(torch.tensor(table["matrix"]), table["superclass_of_class"])
        return Confusion(table["superclasses"], counts, "the test split, at the end of the run")
    except (OSError, ValueError, KeyError):
        return None


def _words(name: str) -> str:
    return name.replace("_", " ")

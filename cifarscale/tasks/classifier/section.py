"""What a run's classifier confuses, and what it finds hardest."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from cifarscale.data.batches import EvaluationSplit
from cifarscale.data.build import shards_that_are_here
from cifarscale.data.dataset import Dataset
from cifarscale.data.normalisation import training_normalisation
from cifarscale.distributed.cpu_pool import CpuPool
from cifarscale.distributed.group import Group
from cifarscale.distributed.ranks import Ranks
from cifarscale.errors import CifarscaleError
from cifarscale.evaluation.accuracy import evaluate_classifier
from cifarscale.tasks.classifier.recipe import ClassifierRecipe
from cifarscale.tasks.load import load_classifier
from cifarscale.tasks.trained import TrainedClassifier
from cifarscale.tracking.parts import Card, Cards, Matrix, Picture, Section, percent, picture

_CONFUSION = "What it confuses"
_LARGEST_MATRIX = 40
"""Rows of a table of mistakes that a page has room for."""
_HARDEST = 6
_EXAMPLES = 8
_CPU = torch.device("cpu")


def mistakes(run_dir: Path, recipe: ClassifierRecipe, data: str | None) -> list[Section]:
    """What the newest checkpoint's network takes for what, on the split that the run was evaluated on."""
    split = "validation" if recipe.data.num_validation else "test"
    try:
        return _computed(run_dir, recipe, split, shards_that_are_here(recipe.data.dataset, data))
    except CifarscaleError as error:
        written = _written(run_dir / "confusion-test.json")
        note = f"Not computed: {error}"
        return [replace(written, note=note) if written else Section("confusion", _CONFUSION, None, note=note)]


def _computed(run_dir: Path, recipe: ClassifierRecipe, split: str, shards: Path) -> list[Section]:
    trained = load_classifier(run_dir, _CPU)
    samples = Dataset(shards, recipe.data, _CPU).split(split)
    normalise = training_normalisation(trained.manifest, _CPU)
    manifest, size = trained.manifest, recipe.evaluation.batch_size
    pool, number = CpuPool(one_core_each=True), len(manifest.fine_names)
    accuracy = evaluate_classifier(trained.network, samples, normalise, Group(Ranks()), pool, size, number)
    pairs = accuracy.confusion()
    of = f"{samples.num_samples:,} images of the {split} split, after step {trained.step:,}"
    confusion = _confusion(pairs, manifest.fine_names, manifest.coarse_names, manifest.coarse_of_fine, of)
    cards = _hardest(trained, samples, accuracy.labels, pairs)
    num = len(cards.cards[0].pictures)
    note = f"The first {num} images of each, not picked, with the most probable class: ✓ right, ✗ wrong."
    return [
        confusion,
        Section("hardest", "Hardest classes", cards, note=note),
    ]


def _confusion(
    pairs: torch.Tensor, classes: Sequence[str], superclasses: Sequence[str], superclass: Sequence[int], of: str
) -> Section:
    """(classes, classes) counts, summed over the classes of each superclass where there are any."""
    names, counts, what = classes, pairs, "class"
    if superclasses:
        member = torch.nn.functional.one_hot(torch.tensor(superclass), len(superclasses))
        names, counts, what = superclasses, member.T @ pairs @ member, "superclass"
    if len(names) > _LARGEST_MATRIX:
        note = f"{len(names)} classes are too many for a table here; confusion-test.json in the run's folder has them."
        return Section("confusion", _CONFUSION, None, note=note)
    caption = f"Percent of each {what} (row) that was taken for each (column): {of}"
    return Section("confusion", _CONFUSION, Matrix(caption, [_words(name) for name in names], counts.tolist()))


def _hardest(trained: TrainedClassifier, samples: EvaluationSplit, labels: torch.Tensor, pairs: torch.Tensor) -> Cards:
    """Classes that are often missed, with what they were taken for most often, and the first of their images."""
    manifest = trained.manifest
    totals, right = pairs.sum(1), pairs.diagonal()
    present = [label for label in range(len(totals)) if totals[label]]
    hardest = sorted(present, key=lambda label: int(right[label]) / int(totals[label]))[:_HARDEST]
    rows = {label: (labels == label).nonzero().flatten()[:_EXAMPLES].tolist() for label in hardest}
    examples = _examples(trained, samples, [row for each in rows.values() for row in each], labels)
    cards = []
    for label in hardest:
        wrong = pairs[label].clone()
        wrong[label] = 0
        likely = [int(i) for i in wrong.argsort(descending=True, stable=True)[:3] if wrong[i]]
        taken_for = ", ".join(
            f"{_words(manifest.fine_names[i])} {percent(int(wrong[i]) / int(totals[label]))}" for i in likely
        )
        of_class = (
            f" · {_words(manifest.coarse_names[manifest.coarse_of_fine[label]])}" if manifest.coarse_names else ""
        )
        cards.append(
            Card(
                _words(manifest.fine_names[label]),
                f"{percent(int(right[label]) / int(totals[label]))} right{of_class}",
                f"Most often taken for: {taken_for}" if taken_for else "",
                [examples[row] for row in rows[label]],
            )
        )
    return Cards(cards)


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
    pictures = {}
    for row, share, prediction in zip(rows, shares.tolist(), predictions.tolist(), strict=True):
        true, taken = _words(manifest.fine_names[int(labels[row])]), _words(manifest.fine_names[prediction])
        pictures[row] = picture(
            pixels[row].permute(1, 2, 0).numpy(),
            f"An image of {true}, taken for {taken}",
            f"{taken} {share:.0%}",
            good=prediction == int(labels[row]),
        )
    return pictures


def _written(path: Path) -> Section | None:
    """What the run itself wrote at its end; None if it is not there."""
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
        of = "the test split, at the end of the run"
        names, superclasses = table["classes"], table["superclasses"]
        return _confusion(torch.tensor(table["matrix"]), names, superclasses, table["superclass_of_class"], of)
    except (OSError, ValueError, KeyError):
        return None


def _words(name: str) -> str:
    return name.replace("_", " ")

"""What W&B gets of a classifier at the end of its run: the confusion matrix, and the accuracy of each class."""

import json
from pathlib import Path
from typing import Any

CONFUSION = "confusion-test.json"
_LARGEST_PLOT = 10_000
"""Rows that W&B takes for a plot."""


def tables(run_dir: Path) -> dict[str, Any]:
    """The tables by W&B's names for them, where the run has them."""
    path = run_dir / CONFUSION
    if not path.is_file():
        return {}
    import wandb

    confusion = json.loads(path.read_text(encoding="utf-8"))
    superclasses = bool(confusion["superclasses"])
    columns: list[str | int] = ["class", *(["superclass"] if superclasses else []), "samples", "top1"]
    classes = {"classes": wandb.Table(columns=columns, data=by_class(confusion))}
    rows = by_group(confusion)
    if len(rows) > _LARGEST_PLOT:
        return classes
    return classes | {
        "confusion_matrix": wandb.plot_table(
            "wandb/confusion_matrix/v1",
            wandb.Table(columns=["Actual", "Predicted", "nPredictions"], data=rows),
            {"Actual": "Actual", "Predicted": "Predicted", "nPredictions": "nPredictions"},
            {"title": f"Confusion of {'superclasses' if superclasses else 'classes'} on the test set"},
        ),
    }


def by_group(confusion: dict[str, Any]) -> list[list[Any]]:
    """Rows (actual, predicted, count) of the superclasses, or of the classes without these; zeros included."""
    names, matrix = confusion["superclasses"] or confusion["classes"], confusion["matrix"]
    coarse_of_fine = confusion["superclass_of_class"] or range(len(names))
    counts = [[0] * len(names) for _ in names]
    for actual, row in enumerate(matrix):
        for predicted, count in enumerate(row):
            counts[coarse_of_fine[actual]][coarse_of_fine[predicted]] += count
    return [[names[i], names[j], count] for i, row in enumerate(counts) for j, count in enumerate(row)]


def by_class(confusion: dict[str, Any]) -> list[list[Any]]:
    """Rows (class, superclass if any, samples, top-1 accuracy), the hardest first."""
    names, coarse_of_fine = confusion["superclasses"], confusion["superclass_of_class"]
    rows = [
        [name, *([names[coarse_of_fine[i]]] if names else []), sum(row), row[i] / sum(row)]
        for i, (name, row) in enumerate(zip(confusion["classes"], confusion["matrix"], strict=True))
        if sum(row)
    ]
    return sorted(rows, key=lambda row: row[-1])

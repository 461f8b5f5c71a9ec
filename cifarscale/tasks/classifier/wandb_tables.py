"""What W&B gets of a classifier at the end of its run: the confusion matrix, and the accuracy of each class."""

import json
from pathlib import Path
from typing import Any

CONFUSION = "confusion-test.json"


def tables(run_dir: Path) -> dict[str, Any]:
    """The tables by W&B's names for them, where the run has them."""
    path = run_dir / CONFUSION
    if not path.is_file():
        return {}
    import wandb

    confusion = json.loads(path.read_text(encoding="utf-8"))
    return {
        "confusion_matrix": wandb.plot_table(
            "wandb/confusion_matrix/v1",
            wandb.Table(columns=["Actual", "Predicted", "nPredictions"], data=by_superclass(confusion)),
            {"Actual": "Actual", "Predicted": "Predicted", "nPredictions": "nPredictions"},
            {"title": "Confusion of superclasses on the test set"},
        ),
        "classes": wandb.Table(columns=["class", "superclass", "samples", "top1"], data=by_class(confusion)),
    }


def by_superclass(confusion: dict[str, Any]) -> list[list[Any]]:
    """Rows (actual, predicted, count) of the superclasses, zeros included."""
    names, coarse_of_fine, matrix = confusion["superclasses"], confusion["superclass_of_class"], confusion["matrix"]
    counts = [[0] * len(names) for _ in names]
    for actual, row in enumerate(matrix):
        for predicted, count in enumerate(row):
            counts[coarse_of_fine[actual]][coarse_of_fine[predicted]] += count
    return [[names[i], names[j], count] for i, row in enumerate(counts) for j, count in enumerate(row)]


def by_class(confusion: dict[str, Any]) -> list[list[Any]]:
    """Rows (class, superclass, samples, top-1 accuracy), the hardest first."""
    names, coarse_of_fine = confusion["superclasses"], confusion["superclass_of_class"]
    rows = [
        [name, names[coarse_of_fine[i]], sum(row), row[i] / sum(row)]
        for i, (name, row) in enumerate(zip(confusion["classes"], confusion["matrix"], strict=True))
        if sum(row)
    ]
    return sorted(rows, key=lambda row: row[3])

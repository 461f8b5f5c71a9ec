"""Tables and files that W&B gets at the end of a run."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cifarscale.config.recipe import TrainingRecipe
from cifarscale.runs.checkpoint import newest_checkpoint

if TYPE_CHECKING:
    import wandb

CONFUSION = "confusion-test.json"


def log_media(run: "wandb.Run", run_dir: Path, recipe: TrainingRecipe) -> None:
    """The confusion matrix and the accuracy of each class, where the run has them, and the checkpoint if asked for."""
    import wandb

    path = run_dir / CONFUSION
    if path.is_file():
        confusion = json.loads(path.read_text(encoding="utf-8"))
        run.log(
            {
                "confusion_matrix": wandb.plot_table(
                    "wandb/confusion_matrix/v1",
                    wandb.Table(columns=["Actual", "Predicted", "nPredictions"], data=by_superclass(confusion)),
                    {"Actual": "Actual", "Predicted": "Predicted", "nPredictions": "nPredictions"},
                    {"title": "Confusion of superclasses on the test set"},
                ),
                "classes": wandb.Table(columns=["class", "superclass", "samples", "top1"], data=by_class(confusion)),
            }
        )
    checkpoint = newest_checkpoint(run_dir / "checkpoints") if recipe.tracking.artifact else None
    if checkpoint is not None:
        artifact = wandb.Artifact(f"{recipe.name}-checkpoint", type="model", metadata={"file": checkpoint.name})
        artifact.add_file(str(checkpoint), policy="immutable", skip_cache=True)
        run.log_artifact(artifact)


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

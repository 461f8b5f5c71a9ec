"""What W&B keeps in a run folder, and what a run is called there."""

import json
import os
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cifarscale.config.recipe import TrackingConfig, TrainingRecipe
from cifarscale.runs.files import write_text_atomically


@dataclass(frozen=True)
class WandbFolder:
    """The files of W&B in a run folder."""

    run_dir: Path

    @property
    def path(self) -> Path:
        return self.run_dir / "wandb"

    @property
    def id(self) -> Path:
        """Holds the id of the W&B run, which all starts of this run share."""
        return self.path / "id"

    @property
    def uploaded(self) -> Path:
        """Is there when W&B's server has all of the run, up to where it has come."""
        return self.path / "uploaded"

    def segments(self) -> list[Path]:
        """What W&B wrote at each start that is still kept, oldest first."""
        return sorted(path.parent for path in self.path.glob("*run-*/run-*.wandb"))

    def offline_file(self) -> Path | None:
        """The newest file of an offline start."""
        files = [path for segment in self.segments() for path in segment.glob("*.wandb")]
        return files[-1] if files and files[-1].parent.name.startswith("offline-") else None

    def make_id(self) -> str:
        """The W&B run's id, drawn at the first start."""
        if not self.id.is_file():
            write_text_atomically(self.id, secrets.token_hex(8) + "\n")
        return self.id.read_text(encoding="utf-8").strip()

    def environment(self) -> dict[str, Any]:
        """Versions, commit, machine and SLURM job of the newest start."""
        path = self.run_dir / "environment.json"
        return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}

    def group(self, recipe: TrainingRecipe) -> str:
        """What the run is grouped by."""
        chosen = recipe.tracking.group or os.environ.get("WANDB_RUN_GROUP")
        trials = self.run_dir.absolute().parent
        is_trial = trials.name == "trials" and (trials.parent / "table.json").is_file()
        return chosen or (trials.parent.name if is_trial else recipe.name)

    @staticmethod
    def project(tracking: TrackingConfig) -> str:
        return os.environ.get("WANDB_PROJECT") or tracking.project

    @staticmethod
    def tags(tracking: TrackingConfig) -> list[str]:
        more = os.environ.get("WANDB_TAGS", "").split(",")
        return [*dict.fromkeys([*tracking.tags, *(tag.strip() for tag in more if tag.strip())])]

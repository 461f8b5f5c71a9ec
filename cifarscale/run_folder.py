"""The folder that a run lives in."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cifarscale.config.load import load_recipe, recipe_hash, recipe_toml
from cifarscale.config.recipe import Recipe
from cifarscale.data.manifest import Manifest
from cifarscale.errors import RunError
from cifarscale.files import write_json_atomically, write_text_atomically

RUNS_ROOT = Path("runs")


@dataclass(frozen=True)
class RunFolder:
    """The files of a run."""

    path: Path

    @property
    def recipe(self) -> Path:
        return self.path / "recipe.toml"

    @property
    def manifest(self) -> Path:
        return self.path / "manifest.json"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def samples(self) -> Path:
        return self.path / "samples"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    def result(self) -> dict[str, Any] | None:
        """The final figures, None while the run is not complete."""
        try:
            result: dict[str, Any] = json.loads((self.path / "result.json").read_text(encoding="utf-8"))
        except (FileNotFoundError, NotADirectoryError):
            return None
        return result

    def load_recipe(self) -> Recipe:
        """Raises: RunError if this is not a run folder."""
        if not self.recipe.is_file():
            raise RunError(f"{self.path} is not a run folder: it has no recipe.toml. Run: ls {RUNS_ROOT}")
        return load_recipe(str(self.recipe))

    def require(self, recipe: Recipe) -> None:
        """Raises: RunError if this is not a folder of the recipe's run."""
        found = self.load_recipe()
        if recipe_hash(found) != recipe_hash(recipe):
            raise RunError(
                f"{self.path} holds a run of another recipe ({found.name}-{recipe_hash(found)}, not "
                f"{recipe.name}-{recipe_hash(recipe)}); name another --run-dir"
            )

    def prepare(self, recipe: Recipe, manifest: Manifest, about: dict[str, Any]) -> None:
        """Makes the folder for a recipe, or checks that it is this recipe's.

        Raises: RunError if it holds another run.
        """
        if self.recipe.exists():
            self.require(recipe)
        elif self.path.is_dir() and any(
            path for path in self.path.iterdir() if not path.name.startswith((".", "logs"))
        ):
            raise RunError(f"{self.path} exists and is not a run folder; name another --run-dir")
        else:
            write_text_atomically(self.recipe, recipe_toml(recipe))
            manifest.save(self.path)
        write_json_atomically(self.path / "environment.json", about)

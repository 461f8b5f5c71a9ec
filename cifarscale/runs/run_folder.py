"""The folder that a run lives in."""

import json
import logging
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from cifarscale.config.code import FOLDER, save_code
from cifarscale.config.load import computed, load_recipe, recipe_hash, recipe_toml, require_training
from cifarscale.config.lookup import read_toml
from cifarscale.config.recipe import Recipe, TrainingRecipe, resolved
from cifarscale.errors import CifarscaleError, ConfigError, RunError, short_path, typed
from cifarscale.runs.checkpoint_files import checkpoint_files
from cifarscale.runs.files import write_json_atomically, write_text_atomically
from cifarscale.runs.lease import lease

log = logging.getLogger(__name__)
RUNS_ROOT = Path("runs")
PATIENCE_S = 5
"""How long a start waits for another one that prepares the same folder."""
_DAMAGED: set[Path] = set()
"""Results of which it was said that they are damaged."""


def run_folders(root: Path = RUNS_ROOT) -> list[Path]:
    """All run folders below a folder, the newest last."""
    recipes = root.glob("*/recipe.toml") if root.is_dir() else ()
    return [path.parent for path in sorted(recipes, key=lambda path: path.stat().st_mtime)]


def default_run_dir(recipe: Recipe) -> Path:
    """`runs/NAME-HASH`: the same recipe finds its run again, a changed one starts another."""
    return RUNS_ROOT / f"{recipe.name}-{recipe_hash(recipe)}"


def folder_of(name_or_path: str, recipe: Recipe) -> Path | None:
    """The folder of a run or a sweep whose own recipe.toml is named, and unchanged: it is what goes on then."""
    path = Path(name_or_path)
    is_made = RunFolder(path.parent).is_made
    if path.name != "recipe.toml" or not is_made or recipe_hash(load_recipe(name_or_path)) != recipe_hash(recipe):
        return None
    return path.parent


def run_of_other_code(recipe: TrainingRecipe, run_dir: Path) -> Path | None:
    """The newest run beside a folder that differs in nothing but the code; None if there is none, or no code."""
    wanted = {**resolved(recipe), "code": ""}
    for folder in reversed(run_folders(run_dir.parent) if recipe.code else []):
        if folder.resolve() == run_dir.resolve():
            continue
        with suppress(ConfigError, OSError):
            own = read_toml(folder / "recipe.toml")
            if own.get("code") != recipe.code and computed({**own, "code": ""}) == computed(wanted):
                return folder
    return None


class Saved(Protocol):
    """What describes the data of a run, such as the manifest of its shards."""

    def save(self, folder: Path) -> None:
        """Puts it into the folder of the run."""


@dataclass(frozen=True)
class RunFolder:
    """The files of a run."""

    path: Path

    @property
    def recipe(self) -> Path:
        return self.path / "recipe.toml"

    @property
    def is_made(self) -> bool:
        """Whether this is the folder of a training or a sweep, rather than one in which a recipe lies."""
        return any((self.path / name).is_file() for name in ("manifest.json", "base.toml"))

    @property
    def manifest(self) -> Path:
        return self.path / "manifest.json"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def digests(self) -> Path:
        """Of each tensor after each step, where the run keeps them."""
        return self.path / "digests.jsonl"

    @property
    def result_file(self) -> Path:
        return self.path / "result.json"

    @property
    def error_file(self) -> Path:
        """Is there while the newest start of the run has ended with an error."""
        return self.path / "error.json"

    @property
    def samples(self) -> Path:
        return self.path / "samples"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def lease(self) -> Path:
        """Held by whoever writes here."""
        return self.path / ".lease"

    @property
    def slurm(self) -> Path:
        """What is known of the SLURM jobs that ran or will run this."""
        return self.path / "slurm"

    def refusal(self, holder: str) -> RunError:
        """What a second writer is told."""
        name = short_path(self.path)
        return RunError(f"{name} is being written by {holder}; one that is gone is forgotten after a minute")

    def result(self) -> dict[str, Any] | None:
        """The final metrics, None while the run is not complete, or where the file is damaged: they are found again."""
        try:
            result = json.loads(self.result_file.read_text(encoding="utf-8"))
        except (FileNotFoundError, NotADirectoryError):
            return None
        except ValueError:
            if self.result_file not in _DAMAGED:
                _DAMAGED.add(self.result_file)
                log.warning("%s is damaged, and does not count", short_path(self.result_file))
            return None
        return result if isinstance(result, dict) else None

    def error(self) -> str:
        """What ended the newest start; empty where it goes on, was asked to stop, was killed, or is complete."""
        try:
            return str(json.loads(self.error_file.read_text(encoding="utf-8"))["message"])
        except (OSError, ValueError, KeyError, TypeError):
            return ""

    def note_error(self, error: Exception) -> None:
        """Notes what ended this start."""
        with suppress(OSError, CifarscaleError):  # the disk may be full, which is what ended it then
            write_json_atomically(self.error_file, {"message": str(error) or type(error).__name__})

    def load_recipe(self) -> Recipe:
        """The recipe that runs here. Raises: RunError if this is not a run folder."""
        if not self.recipe.is_file():
            raise RunError(f"{short_path(self.path)} is not a run folder: it has no recipe.toml. Run: cifarscale runs")
        return load_recipe(short_path(self.recipe), of_run=True)

    def load_training_recipe(self) -> TrainingRecipe:
        """`load_recipe` for a training. Raises: ConfigError also if nothing is trained here."""
        return require_training(self.load_recipe(), short_path(self.recipe))

    def require(self, recipe: Recipe) -> None:
        """Raises: RunError if this is not a folder of the recipe's run."""
        own_recipe = self.load_recipe()
        if recipe_hash(own_recipe) != recipe_hash(recipe):
            name = short_path(self.path)
            raise RunError(
                f"{name} holds a run of another recipe "
                f"({own_recipe.name}-{recipe_hash(own_recipe)}, not {recipe.name}-{recipe_hash(recipe)}). "
                f"Name another --run-dir; cifarscale runs diff {typed(name)} RECIPE shows in what they differ"
            )

    def prepare(self, recipe: Recipe, manifest: Saved | None = None) -> None:
        """Makes the folder for a recipe, or checks that it is this one's.

        Args:
            manifest: of the shards that are trained on.
        Raises: RunError if it holds another run.
        """
        text = recipe_toml(recipe)
        if self._holds(text) and (manifest is None or self.manifest.exists()):
            return
        # Under the lease, or a start that is refused would change the recipe of one that goes on.
        with lease(self.lease, self.refusal, PATIENCE_S):
            if self.recipe.exists():
                self.require(recipe)
            elif any(path for path in self.path.iterdir() if not path.name.startswith((".", "logs", FOLDER))):
                raise RunError(f"{short_path(self.path)} exists and is not a run folder; name another --run-dir")
            if isinstance(recipe, TrainingRecipe) and recipe.code and not (self.path / FOLDER).exists():
                save_code(recipe.code, self.path)
            if not self._holds(text):  # also where it differs in what does not count, such as tracking
                write_text_atomically(self.recipe, text)
            if manifest is not None and not self.manifest.exists():
                manifest.save(self.path)

    def _holds(self, text: str) -> bool:
        """Whether this is what recipe.toml says."""
        try:
            return self.recipe.read_text(encoding="utf-8") == text
        except (OSError, UnicodeDecodeError):
            return False

    def saved_step(self) -> int | None:
        """Step of the newest checkpoint, as its name says; it may be damaged."""
        return next((step for step, _ in checkpoint_files(self.checkpoints)), None)

    def environment(self) -> dict[str, Any]:
        """What the run ran on last; empty where that is not known."""
        try:
            environment: dict[str, Any] = json.loads((self.path / "environment.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return environment

    def describe(self, environment: dict[str, Any]) -> None:
        """Notes on what the run runs on now, and on when it was started before."""
        before = self.environment()
        starts = [*before.get("starts", []), environment["started"]]
        write_json_atomically(self.path / "environment.json", {**environment, "starts": starts})

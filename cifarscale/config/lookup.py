"""TOML files that can be named: recipes and cluster profiles, yours before those that come with the package."""

import shutil
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cifarscale.config.validation import nearest
from cifarscale.errors import ConfigError, writing_to

_PACKAGE = Path(__file__).resolve().parents[1]


def bundled_folders(name: str) -> tuple[Path, ...]:
    """Folders of that name that came with the package: within it where it was installed, else in the checkout."""
    return tuple(folder for folder in (_PACKAGE / "_bundled" / name, _PACKAGE.parent / name) if folder.is_dir())


def named_files(folders: Sequence[Path]) -> dict[str, Path]:
    """All TOML files of the folders, name to file, in alphabetical order; an earlier folder hides a later one's."""
    files: dict[str, Path] = {}
    for folder in folders:
        for path in sorted(folder.glob("*.toml")):
            files.setdefault(path.stem, path)
    return dict(sorted(files.items()))


def find_file(kind: str, name_or_path: str, folders: Sequence[Path]) -> Path:
    """The file of a `kind` (recipe, profile) that is given by path or by name.

    Raises: ConfigError if there is none, with the nearest name.
    """
    if name_or_path.endswith(".toml"):
        path = Path(name_or_path)
        if path.is_file():
            return path
        command = "jobs" if kind == "recipe" else f"{kind}s"
        raise ConfigError(f"no {kind} file {path}. Run: cifarscale {command} list")
    files = named_files(folders)
    if name_or_path in files:
        return files[name_or_path]
    if kind == "recipe" and (own := Path(name_or_path, "recipe.toml")).is_file():
        raise ConfigError(f"{name_or_path} is a run folder; name its recipe: {own}")
    raise ConfigError(
        f"unknown {kind} {name_or_path!r}{nearest(name_or_path, files)}; there are: {', '.join(files) or 'none'}. "
        "Name one of these, or the path of a .toml file."
    )


def read_toml(path: Path) -> dict[str, Any]:
    """Raises: ConfigError if it is not valid TOML."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from error


def copy_file(source: Path, target: Path) -> None:
    """Copies a recipe or profile to start one's own from.

    Raises: ConfigError if the target exists; CifarscaleError if it cannot be written.
    """
    if target.exists():
        raise ConfigError(f"{target} exists already, and is left as it is. Name another file.")
    with writing_to(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)

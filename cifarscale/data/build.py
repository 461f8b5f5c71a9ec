"""Building a folder of shards: once, whole, and by one process at a time. What only locates them imports no numpy."""

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from cifarscale.data.manifest import MANIFEST_NAME, Manifest
from cifarscale.data.names import DATASETS
from cifarscale.errors import DataError, writing_to
from cifarscale.log import console
from cifarscale.runs.lease import lease

if TYPE_CHECKING:
    from cifarscale.data.source import Source

DEFAULT_NUM_SHARDS = 64
SHARDS_ROOT = Path("shards")


def default_folder(dataset: str) -> Path:
    """Where the shards of a named set lie unless one says otherwise."""
    return SHARDS_ROOT / dataset


def locate_shards(data: str) -> Path:
    """The folder of shards that `data` names: itself a folder of shards, or a known set, built where it is missing.

    Raises: DataError if it is neither.
    """
    if (Path(data) / MANIFEST_NAME).is_file():
        return Path(data)
    if data not in DATASETS:
        raise DataError(f"--data {data} is neither a folder of shards nor one of: {', '.join(DATASETS)}")
    folder = default_folder(data)
    if not (folder / MANIFEST_NAME).is_file():
        build_shards(data, folder)
    return folder


def shards_that_are_here(dataset: str, data: str | None) -> Path:
    """The folder of shards of a set; nothing is built or fetched.

    Args:
        data: a data set or a folder of shards; None for `dataset`.
    Raises: DataError if there is none.
    """
    name = data or dataset
    for folder in (Path(name), default_folder(name)):
        if (folder / MANIFEST_NAME).is_file():
            return folder
    raise DataError(f"the shards of {name} are not here, so no image was looked at. Name their folder with --data")


def build_shards(
    dataset: str,
    folder: Path,
    num_shards: int = DEFAULT_NUM_SHARDS,
    source: Path | None = None,
    force: bool = False,
) -> Manifest:
    """Builds the shards of a known set into `folder`, which appears in one step when all of it is there.

    Args:
        source: CIFAR-100's folder or archive; it is downloaded where this is None.
        force: replace what is in `folder`.
    Returns: the manifest; if the same shards are there and whole already, theirs.
    Raises: DataError if the folder holds something else, or another build is writing it.
    """
    from rich.progress import Progress

    from cifarscale.data.shards import write_shards

    if source is not None and dataset != "cifar100":
        raise DataError(f"--source has no effect with --data {dataset}: it is drawn, not read")
    if folder.is_symlink():  # to a larger disk, maybe: what it points to is built or replaced there
        folder = folder.resolve()
    if folder.exists() and not folder.is_dir():
        raise DataError(f"{folder} is not a folder; name another with --out")
    if folder.exists() and not force:
        return _existing(dataset, folder, num_shards)
    staging = folder.with_name(f".{folder.name}.building")
    with lease(folder.with_name(f".{folder.name}.lease"), lambda holder: _refusal(folder, holder)):
        replaced = _aside(folder)
        if replaced.exists() and not folder.exists():
            replaced.rename(folder)  # killed between two renames: the old set is what there is
        built = _load(dataset, source, folder.parent)
        with writing_to(staging):
            shutil.rmtree(staging, ignore_errors=True)  # left by a build that was killed
            staging.mkdir()
        with Progress(console=console, disable=not console.is_terminal) as progress:
            total = sum(len(split.fine) for split in built.splits)
            bar = progress.add_task(f"writing {folder}", total=total)
            try:
                manifest = write_shards(built, staging, num_shards, lambda n: progress.advance(bar, n))
                _put_in_place(staging, folder)
            finally:
                shutil.rmtree(staging, ignore_errors=True)
    return manifest


def _refusal(folder: Path, holder: str) -> DataError:
    return DataError(f"another build is writing {folder} ({holder}). Wait for it, or name another folder with --out")


def _aside(folder: Path) -> Path:
    """Where a folder that is being replaced waits until the new one is there."""
    return folder.with_name(f".{folder.name}.replaced")


def _put_in_place(staging: Path, folder: Path) -> None:
    """Renames the finished folder; what it replaces is removed only when the new one is there."""
    with writing_to(folder):
        replaced = _aside(folder)
        shutil.rmtree(replaced, ignore_errors=True)
        if folder.exists():
            folder.rename(replaced)
        staging.rename(folder)
        shutil.rmtree(replaced, ignore_errors=True)


def _existing(dataset: str, folder: Path, num_shards: int) -> Manifest:
    from cifarscale.data.shards import find_damage

    if not (folder / MANIFEST_NAME).is_file():
        raise DataError(
            f"{folder} exists and is not a folder of shards; name another with --out, or replace it: --force"
        )
    manifest = Manifest.load(folder)
    num_existing = len(next(iter(manifest.splits.values())).shards)
    if (manifest.dataset, num_existing) != (dataset, num_shards):
        raise DataError(
            f"{folder} holds {manifest.dataset} in {num_existing} training shards, not {dataset} in {num_shards}; "
            "name another folder with --out, or replace it: --force"
        )
    if damage := find_damage(folder, manifest):
        raise DataError(f"{damage[0]}{f' ({len(damage) - 1} more)' if len(damage) > 1 else ''}")
    return manifest


def _load(dataset: str, source: Path | None, cache: Path) -> "Source":
    """Reads or draws a known set; a launcher that only locates shards imports neither way."""
    if dataset == "cifar100":
        from cifarscale.data.cifar100 import cifar100_source

        return cifar100_source(source, cache)
    from cifarscale.data.synthetic import synthetic_source

    return synthetic_source()

"""Building a folder of shards: once, whole, and by one process at a time. What only locates them imports no numpy."""

import hashlib
import logging
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cifarscale.config.code import place
from cifarscale.config.registry import RegisteredDataset, dataset_names, registered_dataset
from cifarscale.config.validation import nearest
from cifarscale.data.manifest import MANIFEST_NAME, Manifest
from cifarscale.errors import CifarscaleError, DataError, typed, writing_to
from cifarscale.log import console
from cifarscale.runs.lease import lease

if TYPE_CHECKING:
    from cifarscale.data.source import Source

log = logging.getLogger(__name__)

DEFAULT_NUM_SHARDS = 64
"""Of the training split; fewer where it has fewer samples."""
_SAMPLES_A_SHARD = 16
"""At least so many, where nobody says how many shards there are to be."""
SHARDS_ROOT = Path("shards")


def default_folder(dataset: str) -> Path:
    """Where the shards of a named set lie unless one says otherwise."""
    return SHARDS_ROOT / dataset


def folder_that_is_here(data: str) -> Path | None:
    """The folder of shards that `data` names: itself one, or that of a set which was built under this name."""
    folders = (Path(data), default_folder(data))
    return next((folder for folder in folders if data and _holds_shards(folder)), None)


def _holds_shards(folder: Path) -> bool:
    """A run folder, which has a recipe, keeps a copy of the manifest alone."""
    return (folder / MANIFEST_NAME).is_file() and not (folder / "recipe.toml").exists()


def locate_shards(data: str, code: str = "") -> Path:
    """The folder of shards that `data` names: itself a folder of shards, or a set, built where it is missing.

    Args:
        code: digest of a recipe's own code, which may register the set; empty for none.
    Raises: DataError if it is neither.
    """
    folder = folder_that_is_here(data)
    try:
        dataset = registered_dataset(data, code)
    except KeyError:
        if folder is None:
            names, source = _known_names(code), typed(data) if Path(data).is_dir() else "DIR"
            raise DataError(
                f"--data {data} is neither a folder of shards nor one of: {', '.join(names)}{nearest(data, names)}. Of "
                f"your own images: cifarscale shards build --data folder --source {source}"
            ) from None
        return folder
    if folder is None:
        build_shards(data, folder := default_folder(data), code=code)
    elif not dataset.is_built_in and Manifest.load(folder).drawn_by != _digest(dataset):
        log.warning(
            "%s was built before %s changed, and is used as it is. To build it again: cifarscale shards build "
            "--data %s --module %s --force",
            *(folder, dataset.file, data, typed(dataset.file)),
        )
    return folder


def shards_that_are_here(dataset: str, data: str | None) -> Path:
    """The folder of shards of a set; nothing is built or fetched.

    Args:
        data: a data set or a folder of shards; None for `dataset`.
    Raises: DataError if there is none.
    """
    name = data or dataset
    if (folder := folder_that_is_here(name)) is not None:
        return folder
    raise DataError(f"the shards of {name} are not here, so no image was looked at. Name their folder with --data")


def build_shards(
    dataset: str,
    folder: Path | None = None,
    num_shards: int | None = None,
    source: Path | None = None,
    force: bool = False,
    *,
    name: str = "",
    size: int = 0,
    holdout: int = 0,
    code: str = "",
) -> Manifest:
    """Builds the shards of a set into `folder`, which appears in one step when all of it is there.

    Args:
        folder: None for `shards/NAME`.
        num_shards: of the training split; None for 64, or fewer where these would hold less than 16 samples each.
        source, size, holdout: what the function of the set is given, if it takes them; see `register_dataset`.
        force: replace what is in `folder`.
        name: what the set is called from now on; empty for `dataset`, or for that of the folder that `source` is.
        code: see `locate_shards`.
    Returns: the manifest; if the same shards are there and whole already, theirs.
    Raises: DataError if there is no such set, or it cannot be made; if the folder holds something else, or another
        build is writing it.
    """
    from rich.progress import Progress

    from cifarscale.data.shards import write_shards

    known = _registered(dataset, code)
    options = _options(known, source=source, size=size, holdout=holdout)
    name = name or _name_of(dataset, source)
    _check_name(name, dataset, code)
    folder = folder or default_folder(name)
    if folder.is_symlink():  # to a larger disk, maybe: what it points to is built or replaced there
        folder = folder.resolve()
    if folder.exists() and not folder.is_dir():
        raise DataError(f"{folder} is not a folder; name another with --out")
    if force and folder.exists():
        _check_replaceable(folder)
    existing = _existing(name, folder, num_shards) if folder.exists() and not force else None
    if existing is not None and known.is_built_in and set(known.options) <= {"source", "cache"}:
        return existing  # it is always the same, and needs no comparison with what it is made of
    staging = folder.with_name(f".{folder.name}.building")
    with lease(folder.with_name(f".{folder.name}.lease"), lambda holder: _refusal(folder, holder)):
        replaced = _aside(folder)
        if replaced.exists() and not folder.exists():
            replaced.rename(folder)  # killed between two renames: the old set is what there is
        built = _read(known, name, options, folder.parent)
        total = sum(len(split.fine) for split in built.splits)
        number = num_shards
        if number is None and existing is not None:
            number = _num_training_shards(existing)
        elif number is None:
            number = min(DEFAULT_NUM_SHARDS, max(1, len(built.splits[0].fine) // _SAMPLES_A_SHARD))
        with writing_to(staging):
            shutil.rmtree(staging, ignore_errors=True)  # left by a build that was killed
            staging.mkdir()
        with Progress(console=console, disable=not console.is_terminal) as progress:
            bar = progress.add_task(f"writing {folder}", total=total)
            try:
                drawn_by = "" if known.is_built_in else _digest(known)
                manifest = write_shards(built, staging, number, lambda n: progress.advance(bar, n), drawn_by)
                if existing is None:
                    _put_in_place(staging, folder)
                elif existing.fingerprint == manifest.fingerprint:
                    manifest.save(folder)  # which says what drew the set last
            finally:
                shutil.rmtree(staging, ignore_errors=True)
    if existing is not None and existing.fingerprint != manifest.fingerprint:
        raise DataError(
            f"{folder} holds {name} with fingerprint {existing.fingerprint}, and what would be built now has "
            f"{manifest.fingerprint}: its images or options have changed. Name another folder with --out, or replace "
            "it: --force"
        )
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


def _check_replaceable(folder: Path) -> None:
    """Raises: DataError for a folder that holds anything but shards: what lies there would be lost."""
    for path in folder.iterdir():
        if not (path.name == MANIFEST_NAME or path.suffix == ".tar" or path.name.startswith(".")) or path.is_dir():
            raise DataError(
                f"{folder} holds more than shards, such as {path.name}, which --force would delete too. "
                "Name another folder with --out"
            )


def _existing(name: str, folder: Path, num_shards: int | None) -> Manifest:
    from cifarscale.data.shards import find_damage

    if not (folder / MANIFEST_NAME).is_file():
        raise DataError(
            f"{folder} exists and is not a folder of shards; name another with --out, or replace it: --force"
        )
    manifest = Manifest.load(folder)
    number = _num_training_shards(manifest)
    wanted = number if num_shards is None else num_shards
    if (manifest.dataset, number) != (name, wanted):
        raise DataError(
            f"{folder} holds {manifest.dataset} in {number} training shards, not {name} in {wanted}; "
            "name another folder with --out, or replace it: --force"
        )
    if damage := find_damage(folder, manifest):
        raise DataError(f"{damage[0]}{f' ({len(damage) - 1} more)' if len(damage) > 1 else ''}")
    return manifest


def _num_training_shards(manifest: Manifest) -> int:
    return len(next(iter(manifest.splits.values())).shards)


def _registered(dataset: str, code: str) -> RegisteredDataset:
    try:
        return registered_dataset(dataset, code)
    except KeyError:
        names = ["folder", *dataset_names(code)]
        raise DataError(
            f"unknown data set {dataset!r}{nearest(dataset, names)}; there are: {', '.join(names)}. Name the file that "
            "registers one of your own with --module FILE"
        ) from None


def _known_names(code: str) -> list[str]:
    """What can be built, and what was built here under a name of its own."""
    here = (path.parent.name for path in SHARDS_ROOT.glob(f"*/{MANIFEST_NAME}"))
    return sorted({*dataset_names(code), *(name for name in here if not name.startswith("."))})


def _name_of(dataset: str, source: Path | None) -> str:
    """What a set is called of which one does not say it: `folder` is what the folder is called."""
    if dataset != "folder" or source is None:
        return dataset
    return re.sub(r"[^\w.+-]", "-", source.resolve().name).lstrip(".+-") or dataset


def _check_name(name: str, dataset: str, code: str) -> None:
    """Raises: DataError for a name that is no folder's, or that is another set's."""
    if not re.fullmatch(r"\w[\w.+-]*", name):
        raise DataError(f"--name {name!r}: a name consists of letters, digits, and _ . + - after the first")
    if name != dataset and name in ("folder", *dataset_names(code)):
        raise DataError(f"the name {name} is that of another data set. Choose another one: --name NAME")


def _options(dataset: RegisteredDataset, **given: Any) -> dict[str, Any]:
    """What the function of a set is given. Raises: DataError for what it does not take, and for what it lacks."""
    options = {key: value for key, value in given.items() if value}
    for key in options:
        if key not in dataset.options:
            raise DataError(f"--{key} has no effect with --data {dataset.name}: it takes no {key}")
    if lacking := [key for key in dataset.required if key != "cache" and key not in options]:
        raise DataError(f"--data {dataset.name} needs --{lacking[0]}. Run: cifarscale shards build --help")
    return options


def _digest(dataset: RegisteredDataset) -> str:
    """Of the file whose function gives a set; of nothing where there is no file, as in a notebook."""
    try:
        content = Path(dataset.file).read_bytes()
    except OSError:
        content = b""
    return hashlib.sha256(content).hexdigest()


def _read(dataset: RegisteredDataset, name: str, options: dict[str, Any], cache: Path) -> "Source":
    """The set, as its function gives it.

    Raises: DataError for what is wrong with it, naming the place in a function of one's own.
    """
    from dataclasses import replace

    from cifarscale.data.source import source_of

    where = ""
    if "cache" in dataset.options:
        options = {**options, "cache": cache}
    if not dataset.is_built_in:
        where = f"data set {dataset.name!r}: {dataset.file}"
    try:
        return replace(source_of(name, dataset.read(**options)), dataset=name)
    except CifarscaleError as error:
        if where:
            raise DataError(f"{where}: {error}") from error
        raise
    except Exception as error:
        if not where:
            raise
        there = place(error, Path(dataset.file).parent) or dataset.file
        raise DataError(f"data set {dataset.name!r}: {there}: {type(error).__name__}: {error}") from error

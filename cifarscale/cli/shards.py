"""`cifarscale shards`: build, verify and describe folders of shards."""

from pathlib import Path
from typing import Any

import click

from cifarscale.errors import DataError, typed


@click.group(short_help="Build, verify and describe data sets.")
def shards() -> None:
    """Build, verify and describe data sets as WebDataset shards."""


@shards.command()
@click.option(
    "--data",
    default="cifar100",
    show_default=True,
    help="Which set: cifar100, cifar10, synthetic; folder, for images of your own; or one that a module registers.",
)
@click.option(
    "--source",
    type=click.Path(path_type=Path),
    help="With folder: DIR with train/CLASS/*.png (or .jpg …), and test/ or --holdout. With cifar10 and cifar100: the "
    "folder or archive of its authors; without it the archive is downloaded.",
)
@click.option("--holdout", type=click.IntRange(min=1), help="Images of each class that are set aside for test.")
@click.option(
    "--size",
    type=click.IntRange(1, 4096),
    help="Scale and cut images to squares of so many pixels a side.  [default: their own size]",
)
@click.option("--name", help="What the set is called from now on.  [default: DATA, or the name of DIR]")
@click.option("--module", help="The .py file, or importable module, that registers a set of your own.")
@click.option("--out", type=click.Path(path_type=Path), help="Folder for the shards.  [default: shards/NAME]")
@click.option("--num-shards", type=int, help="Shards of the training split.  [default: 64; fewer for small sets]")
@click.option("--force", is_flag=True, help="Replace what is in the folder.")
def build(
    data: str, module: str | None, out: Path | None, num_shards: int | None, source: Path | None, **options: Any
) -> None:
    """Convert a data set to shards. `--data NAME` of other commands finds it again, in shards/NAME."""
    from cifarscale.config.code import load_module
    from cifarscale.data.build import build_shards, default_folder
    from cifarscale.data.manifest import published_manifest

    code = load_module(module, "shards build") if module else ""
    given = {key: value for key, value in options.items() if value is not None}
    manifest = build_shards(data, out, num_shards, source, code=code, **given)
    folder = out or default_folder(manifest.dataset)
    _show(folder)
    published = manifest == published_manifest(manifest.dataset)
    click.echo(f"fingerprint {manifest.fingerprint}{', equal to the published one' if published else ''}")
    click.echo(f"next  cifarscale train cnn --data {typed(folder)}")


@shards.command()
@click.argument("data", default="cifar100")
def verify(data: str) -> None:
    """Compare every byte of DATA, a folder of shards or the name of a built set, with its manifest."""
    from cifarscale.data.build import folder_that_is_here
    from cifarscale.data.manifest import Manifest
    from cifarscale.data.shards import find_damage

    folder = folder_that_is_here(data) or _named(data)
    manifest = Manifest.load(folder)
    problems = find_damage(folder, manifest)
    if problems:
        for problem in problems[1:]:
            click.echo(problem, err=True)
        raise DataError(problems[0])
    count = sum(len(split.shards) for split in manifest.splits.values())
    click.echo(f"{folder}: all {count} shards are as the manifest says; fingerprint {manifest.fingerprint}")


@shards.command()
@click.argument("data", default="cifar100")
def info(data: str) -> None:
    """Describe the shards of DATA, a folder of shards or the name of a built set."""
    from cifarscale.data.build import folder_that_is_here

    _show(folder_that_is_here(data) or _named(data))


def _named(data: str) -> Path:
    """The folder that a name stands for which nothing was built under.

    Raises: DataError if it is the name of a set.
    """
    from cifarscale.config.registry import dataset_names

    if data in dataset_names() and not Path(data).exists():
        raise DataError(f"the shards of {data} are not here. Run: cifarscale shards build --data {data}")
    return Path(data)


def _show(folder: Path) -> None:
    from rich.console import Console
    from rich.table import Table

    from cifarscale.data.manifest import Manifest

    manifest = Manifest.load(folder)
    table = Table(title=f"{manifest.dataset} in {folder}")
    for column in ("split", "samples", "shards", "MB", "mean RGB", "std RGB"):
        table.add_column(column, justify="left" if column == "split" else "right")
    for name, split in manifest.splits.items():
        paths = [folder / entry.name for entry in split.shards]
        size = sum(path.stat().st_size for path in paths if path.exists()) / 1e6
        mean, std = (" ".join(f"{value:.3f}" for value in values) for values in (split.mean, split.std))
        table.add_row(name, f"{split.num_samples:,}", str(len(split.shards)), f"{size:,.1f}", mean, std)
    superclasses = f" in {len(manifest.coarse_names)} superclasses" if manifest.coarse_names else ""
    height, width = manifest.image_size
    table.caption = f"{len(manifest.fine_names)} classes{superclasses}, {width} x {height} pixels"
    Console(markup=False).print(table)

"""`cifarscale shards`: build, verify and describe folders of shards."""

from pathlib import Path

import click

from cifarscale.data.names import DATASETS
from cifarscale.errors import typed


@click.group(short_help="Build, verify and describe data sets.")
def shards() -> None:
    """Build, verify and describe data sets as WebDataset shards."""


@shards.command()
@click.option("--data", type=click.Choice(DATASETS), default="cifar100", show_default=True, help="Which set.")
@click.option(
    "--source",
    type=click.Path(path_type=Path),
    help="CIFAR-100's folder (with cifar-100-python/ in it) or archive; without it the archive is downloaded.",
)
@click.option("--out", type=click.Path(path_type=Path), help="Folder for the shards.  [default: shards/DATA]")
@click.option("--num-shards", type=int, default=64, show_default=True, help="Shards of the training split.")
@click.option("--force", is_flag=True, help="Replace what is in the folder.")
def build(data: str, source: Path | None, out: Path | None, num_shards: int, force: bool) -> None:
    """Convert a data set to shards."""
    from cifarscale.data.build import build_shards, default_folder
    from cifarscale.data.manifest import published_manifest

    folder = out or default_folder(data)
    manifest = build_shards(data, folder, num_shards, source, force)
    _show(folder)
    published = manifest == published_manifest(data)
    click.echo(f"fingerprint {manifest.fingerprint}{', equal to the published one' if published else ''}")
    click.echo(f"next  cifarscale train cnn --data {typed(folder)}")


@shards.command()
@click.argument("folder", type=click.Path(path_type=Path), default=Path("shards/cifar100"))
def verify(folder: Path) -> None:
    """Compare every byte in FOLDER with its manifest."""
    from cifarscale.data.manifest import Manifest
    from cifarscale.data.shards import find_damage
    from cifarscale.errors import DataError

    manifest = Manifest.load(folder)
    problems = find_damage(folder, manifest)
    if problems:
        for problem in problems[1:]:
            click.echo(problem, err=True)
        raise DataError(problems[0])
    count = sum(len(split.shards) for split in manifest.splits.values())
    click.echo(f"{folder}: all {count} shards are as the manifest says; fingerprint {manifest.fingerprint}")


@shards.command()
@click.argument("folder", type=click.Path(path_type=Path), default=Path("shards/cifar100"))
def info(folder: Path) -> None:
    """Describe the shards in FOLDER."""
    _show(folder)


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
    table.caption = f"{len(manifest.fine_names)} classes in {len(manifest.coarse_names)} superclasses"
    Console().print(table)

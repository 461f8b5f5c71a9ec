"""Options that several commands share."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from rich.table import Column, Table

run_argument = click.argument("run", type=click.Path(exists=True, file_okay=False, path_type=Path))
device_option = click.option(
    "--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True, help="Where to compute."
)
nproc_option = click.option(
    "--nproc", type=click.IntRange(min=1), default=1, show_default=True, help="Processes (ranks) on this machine."
)

wandb_option = click.option(
    "--wandb",
    type=click.Choice(["auto", "online", "offline", "off"]),
    help="Weights & Biases.  [default: the recipe's tracking.wandb, off]",
)


def short_path(path: Path) -> str:
    """A path as one would type it here."""
    here = Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)


def plain_table(*columns: "Column | str") -> "Table":
    """A table without lines between its columns, for one row a line at 80 columns."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    return Table(*columns, box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)


def tracked(wandb: str | None, prefix: str = "") -> tuple[str, ...]:
    """`--wandb` as an override of a recipe's key."""
    return () if wandb is None else (f"{prefix}tracking.wandb={wandb}",)

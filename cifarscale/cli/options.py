"""Options that several commands share."""

from pathlib import Path

import click

run_argument = click.argument("run", type=click.Path(exists=True, file_okay=False, path_type=Path))
device_option = click.option(
    "--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True, help="Where to compute."
)
nproc_option = click.option(
    "--nproc", type=click.IntRange(min=1), default=1, show_default=True, help="Processes (ranks) on this machine."
)
set_option = click.option(
    "--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Change a key of the recipe; repeatable."
)
scale_option = click.option(
    "--scale",
    type=click.IntRange(min=1),
    default=1,
    metavar="K",
    help="Make batches K times as large, after --set, with the learning rate and the steps to match: another recipe.",
)
no_graph_option = click.option(
    "--no-graph", is_flag=True, help="Do not replay steps as a CUDA graph, as one GPU does: the same bits, more slowly."
)
wandb_option = click.option(
    "--wandb",
    type=click.Choice(["auto", "online", "offline", "off"]),
    help="Weights & Biases.  [default: the recipe's tracking.wandb, off]",
)


def tracked(wandb: str | None, prefix: str = "") -> tuple[str, ...]:
    """`--wandb` as an override of a recipe's key."""
    return () if wandb is None else (f"{prefix}tracking.wandb={wandb}",)

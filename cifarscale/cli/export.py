"""`cifarscale export`."""

from pathlib import Path
from typing import Literal

import click

from cifarscale.cli.options import run_argument


@click.command(short_help="Write the network of a run to a file that other programs read.")
@run_argument
@click.option(
    "--to",
    type=click.Path(path_type=Path),
    required=True,
    help="A .pt2 (torch.export), .onnx or .safetensors (weights) file.",
)
@click.option(
    "--pixels",
    type=click.Choice(["float", "uint8"]),
    default="float",
    show_default=True,
    help="Of images that go in or come out: floats from 0 to 1, or whole numbers from 0 to 255.",
)
@click.option("--force", is_flag=True, help="Replace the file if it is there.")
def export(run: Path, to: Path, pixels: Literal["float", "uint8"], force: bool) -> None:
    """Write what RUN has trained to a file that is read without this package.

    A classifier takes images to logits, with the normalisation in it; a generator takes latents, and labels where it
    knows classes, to images. The file is kept only if it computes what the network does.
    """
    from cifarscale.tasks.export import export as export_run

    exported = export_run(run, to, pixels, force)
    if exported.takes:
        click.echo(f"{to}: {exported.takes} to {exported.gives}")
        click.echo(f"compared with the network on noise: the largest difference is {exported.difference:.1e}")
    else:
        click.echo(f"{to}: the weights, compared bit by bit; recipe, classes, mean and std are in its metadata")

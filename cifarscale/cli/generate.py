"""`cifarscale generate`."""

from pathlib import Path

import click

from cifarscale.cli.options import device_option, run_argument

OTHER_FORMATS = (".jpg", ".jpeg", ".gif", ".bmp", ".webp", ".tif", ".tiff", ".npz", ".npy", ".pdf", ".svg", ".zip")


@click.command(short_help="Generate images with the generator of a run.")
@run_argument
@click.option("--num", type=click.IntRange(min=1), default=64, show_default=True, help="How many images.")
@click.option("--class", "class_name", metavar="NAME", help="The class to generate; for conditional generators.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Which images.")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    required=True,
    help="A .png for one grid, or a folder for one file per image.",
)
@device_option
def generate(run: Path, num: int, class_name: str | None, seed: int, out: Path, device: str) -> None:
    """Generate images with the generator of RUN. The same seed gives the same images, whatever their number."""
    from math import isqrt

    from PIL import Image

    from cifarscale.api.runs import load
    from cifarscale.errors import ConfigError, writing_to
    from cifarscale.tracking.samples import save_grid

    if out.suffix.lower() in OTHER_FORMATS:
        raise ConfigError(f"--out {out}: images are written as .png. Name a .png for one grid, or a folder")
    if out.suffix != ".png" and out.is_dir() and (names := sorted(path.name for path in out.iterdir())):
        raise ConfigError(
            f"--out {out} holds {len(names)} files already ({names[0]} …), which would be measured together with the "
            "new ones. Name another folder, or remove it first"
        )
    images = load(run).generate(num, seed, class_name, device)
    if out.suffix == ".png":
        save_grid(images, isqrt(num - 1) + 1, out)
    else:
        with writing_to(out):
            out.mkdir(parents=True, exist_ok=True)
            for i, image in enumerate(images):
                Image.fromarray(image).save(out / f"{i:06d}.png")
    what = f"{num} images of {run.name}" + (f", class {class_name}" if class_name else "")
    click.echo(f"{what}, seed {seed}: {out}")

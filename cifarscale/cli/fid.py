"""`cifarscale fid`."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cifarscale.cli.options import device_option, nproc_option

if TYPE_CHECKING:
    from cifarscale.config.recipe import Recipe


@click.command(short_help="Measure how close images are to real ones.")
@click.argument("images")
@click.option("--against", metavar="train|test|DIR|FILE.npz", help="The real images.  [default: train]")
@click.option("--num-samples", type=click.IntRange(min=1), help="Images to generate.  [default: 10000]")
@click.option("--features", metavar="inception|cnn:RUN", help="Which features to compare.  [default: inception]")
@click.option("--weights", type=click.Path(dir_okay=False), help="Inception's weights.  [default: fetched once]")
@click.option("--precision", type=click.Choice(["exact", "fast"]), help="float32, or bfloat16.  [default: exact]")
@click.option("--batch-size", type=click.IntRange(min=1), help="Images per core or GPU at a time.  [default: 64]")
@click.option("--seed", type=click.IntRange(min=0), help="Determines which images are generated.  [default: 0]")
@click.option("--no-kernel", is_flag=True, help="Leave the kernel distance out.")
@click.option("--no-neighbours", is_flag=True, help="Leave precision and recall out.")
@click.option("--no-classes", is_flag=True, help="Leave the distance of each class out.")
@click.option("--allow-few-samples", is_flag=True, help="Go on with fewer images than features.")
@click.option("--data", help="A data set or a folder of shards.  [default: the run's set, or cifar100]")
@click.option(
    "--save-statistics",
    type=click.Path(path_type=Path),
    help="Save the statistics of IMAGES as .npz, in pytorch-fid's format.",
)
@click.option(
    "--out", type=click.Path(path_type=Path), help="Write the metrics here, as JSON.  [default: in the run's folder]"
)
@nproc_option
@device_option
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Change a key of jobs/fid.toml.")
def fid(
    images: str,
    data: str | None,
    save_statistics: Path | None,
    out: Path | None,
    nproc: int,
    device: str,
    overrides: tuple[str, ...],
    **options: Any,
) -> None:
    """Measure how close IMAGES are to real ones. IMAGES is a generator's run, a folder, or a split (train, test).

    Computes FID with Inception's features or, where its weights are not available, the Fréchet distance in the
    features of a classifier that you trained (--features cnn:RUN); also the kernel distance, precision and recall.
    """
    from cifarscale.cli.measured import measured
    from cifarscale.config.load import load_recipe, require_task, with_values
    from cifarscale.runs.options import RunOptions
    from cifarscale.runs.run_folder import RunFolder

    recipe = load_recipe("fid", overrides)
    require_task(recipe, "distance", "fid")
    saved = {"save_statistics": str(save_statistics)} if save_statistics else {}
    recipe = with_values(recipe, images=images, **saved, **_changes(options))
    folder = RunFolder(Path(images))
    is_run = folder.recipe.exists()
    if out is None and is_run:
        out = folder.path / f"{_file_name(recipe)}.json"
    measured(recipe, data, RunOptions(device=device), nproc, out, folder.path / "logs" if is_run else None)
    if out is not None:
        click.echo(f"all metrics  {out}")
    if save_statistics:
        click.echo(f"statistics   {save_statistics}")


def _changes(options: dict[str, Any]) -> dict[str, Any]:
    """The options that were given, as keys of the job."""
    changes: dict[str, Any] = {}
    for key in ("against", "num_samples", "features", "weights", "precision", "batch_size"):
        if options[key] is not None:
            changes[f"distance__{key}"] = options[key]
    for key, off in (("kernel", False), ("neighbours", 0), ("classes", False)):
        if options[f"no_{key}"]:
            changes[f"distance__{key}"] = off
    if options["allow_few_samples"]:
        changes["distance__allow_few_samples"] = True
    if options["seed"] is not None:
        changes["seed"] = options["seed"]
    return changes


def _file_name(recipe: "Recipe") -> str:
    """`distance-FEATURES-AGAINST`, with the last part of paths."""
    from cifarscale.config.recipe import resolved

    distance = resolved(recipe)["distance"]
    parts = (distance["features"].rstrip("/"), distance["against"].rstrip("/"))
    return "-".join(["distance", *(re.sub(r"[^\w.]+", "-", re.sub(r"[^:]*/", "", part)) for part in parts)])

"""`cifarscale fid`."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from cifarscale.cli.options import device_option, nproc_option


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
    from cifarscale.api.measurements import distance_measurement
    from cifarscale.tasks.base import task_of

    changes: list[str | tuple[str, Any]] = [*overrides, *_changes(save_statistics=save_statistics, **options)]
    measurement = distance_measurement(images, options["against"], options["features"], changes, out)
    result = measurement.run(data, nproc, device)
    task_of(measurement.recipe).view.print_result(result, Path())
    if measurement.out is not None:
        click.echo(f"all metrics  {measurement.out}")
    if save_statistics:
        click.echo(f"statistics   {save_statistics}")


def _changes(**options: Any) -> Iterator[tuple[str, Any]]:
    """The options that were given, as keys of the job."""
    for key in ("num_samples", "weights", "precision", "batch_size"):
        if options[key] is not None:
            yield f"distance.{key}", options[key]
    for key, off in (("kernel", False), ("neighbours", 0), ("classes", False)):
        if options[f"no_{key}"]:
            yield f"distance.{key}", off
    if options["allow_few_samples"]:
        yield "distance.allow_few_samples", True
    for key in ("seed", "save_statistics"):
        if options[key] is not None:
            yield key, options[key]

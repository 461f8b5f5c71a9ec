"""`cifarscale fid`."""

import json
import re
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cifarscale.cli.options import device_option, nproc_option

if TYPE_CHECKING:
    from cifarscale.config.distance import DistanceRecipe


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
    from cifarscale.config.load import load_fid, with_values
    from cifarscale.prepare import shards_to_measure
    from cifarscale.runs.run_folder import RunFolder

    job = with_values(load_fid(overrides), images=images, **_changes(options))
    folder = RunFolder(Path(images))
    is_run = folder.recipe.exists()
    shards = shards_to_measure(job, data)
    with tempfile.TemporaryDirectory() as scratch:
        out = out or (folder.path if is_run else Path(scratch)) / f"{_file_name(job)}.json"
        if nproc == 1:
            from cifarscale.inference import measure_images

            measure_images(job, shards, device, out, save_statistics)
        else:
            from cifarscale.launch.call import measurement
            from cifarscale.launch.local import run_locally

            logs = folder.path / "logs" if is_run else Path(scratch)
            run_locally(measurement(job, shards, device, out, save_statistics), nproc, logs)
        _show(json.loads(out.read_text(encoding="utf-8")))
        if scratch not in str(out):
            click.echo(f"all figures  {out}")
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


def _file_name(job: "DistanceRecipe") -> str:
    """`distance-FEATURES-AGAINST`, with the last part of paths."""
    parts = (job.distance.features.rstrip("/"), job.distance.against.rstrip("/"))
    return "-".join(["distance", *(re.sub(r"[^\w.]+", "-", re.sub(r"[^:]*/", "", part)) for part in parts)])


def _show(result: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    step = f" after {result['step']:,} steps" if "step" in result else ""
    real = f"{result['num_real']:,} of {result['against']}" if result["num_real"] else result["against"]
    console.print(
        f"{Path(result['images']).name}{step}: {result['num_samples']:,} images against {real}",
        highlight=False,
        soft_wrap=True,
    )
    table = Table("figure", "value")
    table.add_row(result["metric"], f"{result['distance']:.4f}")
    if "on_sample" in result:
        sample = result["on_sample"]
        deviation = sample["fast"] / sample["exact"] - 1 if sample["exact"] else 0.0
        table.add_row(f"  deviation from exact, on {sample['num_samples']} images of each", f"{deviation:+.2%}")
    elif result["computed"] == "fast":
        table.add_row("  deviation from exact", "not known")
    if "kernel_distance" in result:
        error = result["kernel_distance_standard_error"]
        table.add_row("kernel distance", f"{result['kernel_distance']:.6f} ± {error:.6f}")
    if "recall" in result:
        table.add_row("precision", f"{result['precision']:.4f}")
        table.add_row("recall", f"{result['recall']:.4f}")
    console.print(table)
    if "classes" in result:
        ranked = sorted(((value, name) for name, value in result["classes"].items() if value is not None))
        classes = Table("nearest classes", "distance", "farthest classes", "distance")
        for (near, near_name), (far, far_name) in list(zip(ranked, reversed(ranked), strict=True))[:5]:
            classes.add_row(near_name, f"{near:.2f}", far_name, f"{far:.2f}")
        console.print(classes)

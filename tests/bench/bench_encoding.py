"""Why the pixels in our shards are raw (PPM) and not PNG: size, time to the first step, streaming rate of both.

    python tests/bench/bench_encoding.py [--source DIR]

DIR is the folder that holds cifar-100-python/ (default: CIFARSCALE_REAL_DATA; the synthetic set where that is unset).
"""

import io
import os
import statistics
import tarfile
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import click
import numpy as np
import webdataset as wds
from PIL import Image

from cifarscale.data.cifar import CIFAR_100, cifar_source
from cifarscale.data.manifest import Manifest
from cifarscale.data.shards import read_split, write_shards
from cifarscale.data.source import Source
from cifarscale.data.synthetic import synthetic_source

ROUNDS = 3


def write_png_shards(source: Source, folder: Path, num_shards: int) -> None:
    """The same samples with PNG in the place of PPM."""
    split = source.splits[0]
    for shard, ids in enumerate(np.array_split(np.arange(len(split.fine)), num_shards)):
        with tarfile.open(folder / f"png-{shard:06d}.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
            for i in ids:
                image = io.BytesIO()
                Image.fromarray(split.images[i]).save(image, "PNG")
                for extension, content in (("png", image.getvalue()), ("cls", str(split.fine[i]).encode())):
                    member = tarfile.TarInfo(f"{i:08d}.{extension}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))


def stream(folder: Path, pattern: str, extension: str) -> int:
    """Goes through all samples as plain webdataset does; returns how many there were."""
    urls = sorted(str(path) for path in folder.glob(pattern))
    pipeline = wds.WebDataset(urls, shardshuffle=False).decode("rgb8").to_tuple(extension, "cls")
    return sum(1 for _ in pipeline)


def decode_all_png(folder: Path) -> int:
    """What an in-memory reader would do with PNG shards: read, parse and decode every sample once."""
    count = 0
    for path in sorted(folder.glob("png-*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                if member.name.endswith(".png"):
                    file = tar.extractfile(member)
                    assert file is not None
                    np.asarray(Image.open(file))
                    count += 1
    return count


def timed(function: Callable[[], object]) -> list[float]:
    seconds = []
    for _ in range(ROUNDS):
        started = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - started)
    return seconds


@click.command()
@click.option("--source", type=click.Path(path_type=Path), default=os.environ.get("CIFARSCALE_REAL_DATA"))
def main(source: Path | None) -> None:
    """Print both encodings side by side."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data = cifar_source(CIFAR_100, source, folder) if source else synthetic_source()
        manifest: Manifest = write_shards(data, folder, 64, lambda _: None)
        write_png_shards(data, folder, 64)
        n = len(data.splits[0].fine)
        size = {kind: sum(p.stat().st_size for p in folder.glob(kind)) / 1e6 for kind in ("*-train-*.tar", "png-*.tar")}
        load = {
            "*-train-*.tar": timed(lambda: read_split(folder, manifest, "train")),
            "png-*.tar": timed(lambda: decode_all_png(folder)),
        }
        rate = {
            "*-train-*.tar": [n / s for s in timed(lambda: stream(folder, "*-train-*.tar", "ppm"))],
            "png-*.tar": [n / s for s in timed(lambda: stream(folder, "png-*.tar", "png"))],
        }
        click.echo(f"{data.dataset}, {n:,} training samples, mean ± sd of {ROUNDS} runs, one process, warm file cache")
        click.echo(f"{'':6}{'MB':>8}{'whole split in memory, s':>28}{'streamed by webdataset, samples/s':>36}")
        for label, kind in (("PPM", "*-train-*.tar"), ("PNG", "png-*.tar")):
            spread = [f"{statistics.mean(v):,.2f} ± {statistics.stdev(v):,.2f}" for v in (load[kind], rate[kind])]
            click.echo(f"{label:6}{size[kind]:8,.0f}{spread[0]:>28}{spread[1]:>36}")


if __name__ == "__main__":
    main()

"""FID on the CPU: our command against pytorch-fid's, with the same weights and images, side by side in one call.

Two folders of PNG files, real images and the same number of others, and seeded random weights, since speed does not
depend on them. Whole commands are timed, start-up included, in turn. A user compares with the same real images again
and again, so their statistics are computed once beforehand. pytorch-fid is timed both with the folder of real images,
as its documentation has it, and with such statistics.

    python tests/bench/bench_fid.py [--num-images 512] [--rounds 3]
"""

import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import click
import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1]))
from inception_weights import random_inception_weights

from cifarscale.data.synthetic import synthetic_source


def save_images(folder: Path, noise: int, num_images: int) -> Path:
    """Drawn images of 32 x 32, with noise on them, as PNG."""
    folder.mkdir()
    images = synthetic_source(num_images, 1).splits[0].images.astype(np.int64)
    images = images + np.random.default_rng(noise).integers(-noise, noise + 1, images.shape)
    for i, image in enumerate(np.clip(images, 0, 255).astype(np.uint8)):
        Image.fromarray(image).save(folder / f"{i:05d}.png")
    return folder


def timed(command: list[str], environment: dict[str, str]) -> tuple[float, str]:
    """Seconds that a command takes, and what it prints."""
    started = time.perf_counter()
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return time.perf_counter() - started, done.stdout


@click.command()
@click.option("--num-images", default=512, show_default=True)
@click.option("--rounds", default=3, show_default=True)
def main(num_images: int, rounds: int) -> None:
    import torch
    from pytorch_fid.inception import FID_WEIGHTS_URL

    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        real = save_images(base / "real", 0, num_images)
        others = save_images(base / "others", 20, num_images)
        # pytorch-fid takes its weights from here, and does not look at what is in the file.
        weights = base / "hub" / "checkpoints" / FID_WEIGHTS_URL.rpartition("/")[2]
        weights.parent.mkdir(parents=True)
        random_inception_weights(weights)
        environment = os.environ | {"TORCH_HOME": str(base)}
        theirs = [sys.executable, "-m", "pytorch_fid", "--device", "cpu", str(others)]

        def ours(precision: str, *more: str) -> list[str]:
            options = ("--weights", str(weights), "--precision", precision, "--allow-few-samples", "--device", "cpu")
            figures = ("--no-kernel", "--no-neighbours", "--out", str(base / "ours.json"))
            return [sys.executable, "-m", "cifarscale", "fid", *more, *options, *figures]

        saved = {precision: str(base / f"{precision}.npz") for precision in ("exact", "fast")}
        for precision, path in saved.items():
            timed(ours(precision, str(real), "--against", str(real), "--save-statistics", path), environment)

        def our_distance(_: str) -> float:
            return float(json.loads((base / "ours.json").read_text())["distance"])

        def their_distance(output: str) -> float:
            return float(output.split("FID:")[1])

        commands: dict[str, tuple[list[str], Callable[[str], float]]] = {
            "pytorch-fid, two folders": ([*theirs, str(real)], their_distance),
            "pytorch-fid, saved statistics": ([*theirs, saved["exact"]], their_distance),
            "ours, exact": (ours("exact", str(others), "--against", saved["exact"]), our_distance),
            "ours, fast": (ours("fast", str(others), "--against", saved["fast"]), our_distance),
        }
        seconds: dict[str, list[float]] = {name: [] for name in commands}
        distances: dict[str, float] = {}
        for _ in range(rounds):
            for name, (command, read) in commands.items():
                taken, output = timed(command, environment)
                seconds[name].append(taken)
                distances[name] = read(output)
    baseline, *_ = commands
    print(
        f"{num_images} images a set, {rounds} rounds; {platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}"
    )
    print(f"{'':30s} {'seconds':>16s} {'speed':>7s} {'distance':>12s} {'deviation':>10s}")
    for name, taken in seconds.items():
        spread = statistics.stdev(taken) if rounds > 1 else 0.0
        ratio = statistics.mean(seconds[baseline]) / statistics.mean(taken)
        deviation = distances[name] / distances[baseline] - 1
        text = f"{statistics.mean(taken):8.1f} ± {spread:5.1f}"
        print(f"{name:30s} {text:>16s} {ratio:6.2f}x {distances[name]:12.6f} {deviation:10.1e}")


if __name__ == "__main__":
    main()

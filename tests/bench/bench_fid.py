"""FID: ours against pytorch-fid's, with the same weights and images, side by side in one call.

Two folders of PNG files, real images and the same number of others, and seeded random weights, since speed does not
depend on them. Two measurements, the kinds in turn in each:

- features alone, in this process: images a second through the network;
- whole commands, start-up and the distance itself included. A user compares with the same real images again and again,
  so ours has their statistics from before. pytorch-fid is timed with the folder of real images, as its documentation
  has it, and with such statistics.

    python tests/bench/bench_fid.py [--num-images 256] [--rounds 3] [--command-rounds 1] [--device cpu]
"""

import contextlib
import io
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from unittest import mock

import click
import numpy as np
import torch
from PIL import Image
from pytorch_fid.inception import FID_WEIGHTS_URL

from cifarscale.config.distance import DistanceConfig
from cifarscale.data.images import images_of_folder
from cifarscale.data.synthetic import synthetic_source
from cifarscale.distributed.cpu_pool import CpuPool, available_cores
from cifarscale.distributed.device import device_name, pick_device
from cifarscale.distributed.group import Group
from cifarscale.distributed.ranks import Ranks
from cifarscale.evaluation.distance import Measure
from cifarscale.evaluation.features import FeatureNetwork, inception

sys.path.insert(0, str(Path(__file__).parents[1]))
from inception_weights import random_inception_weights


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


def features_alone(folder: Path, weights: Path, rounds: int, device: torch.device) -> None:
    """Prints images a second of pytorch-fid's loop and of ours."""
    from pytorch_fid import inception as theirs
    from pytorch_fid.fid_score import get_activations

    cores = available_cores()
    with mock.patch.object(theirs, "load_state_dict_from_url", return_value=torch.load(weights, weights_only=True)):
        network = theirs.InceptionV3([3]).to(device)
    images = images_of_folder(folder, device)
    exact, fast = (inception(weights, device, precision) for precision in ("exact", "fast"))
    config = DistanceConfig(kernel=False, neighbours=0, batch_size=16)

    def pytorch_fid() -> None:
        torch.set_num_threads(cores)
        with contextlib.redirect_stderr(io.StringIO()):
            get_activations(sorted(folder.iterdir()), network, 50, 2048, device, cores)

    def ours(features: FeatureNetwork) -> None:
        pool = CpuPool(one_core_each=device.type == "cpu")
        Measure(config, features, Group(Ranks()), pool, device).collect(images)

    kinds = {"pytorch-fid": pytorch_fid, "ours, exact": lambda: ours(exact), "ours, fast": lambda: ours(fast)}
    rates: dict[str, list[float]] = {name: [] for name in kinds}
    for _ in range(rounds):
        for name, run in kinds.items():
            started = time.perf_counter()
            run()
            rates[name].append(images.num_images / (time.perf_counter() - started))
    print(f"{'features alone':30s} {'images/s':>16s} {'speed':>7s}")
    for name, found in rates.items():
        ratio = statistics.mean(found) / statistics.mean(rates["pytorch-fid"])
        print(f"{name:30s} {_with_spread(found):>16s} {ratio:6.2f}x")


def whole_commands(base: Path, real: Path, others: Path, weights: Path, rounds: int, device: torch.device) -> None:
    """Prints the seconds that each command takes, and the distance that it finds."""
    environment = os.environ | {"TORCH_HOME": str(base)}
    out = base / "ours.json"
    theirs = [sys.executable, "-m", "pytorch_fid", "--device", str(device), str(others)]

    def ours(precision: str, *more: str) -> list[str]:
        options = ("--weights", str(weights), "--precision", precision, "--batch-size", "16", "--device", device.type)
        figures = ("--allow-few-samples", "--no-kernel", "--no-neighbours", "--out", str(out))
        return [sys.executable, "-m", "cifarscale", "fid", *more, *options, *figures]

    saved = {precision: str(base / f"{precision}.npz") for precision in ("exact", "fast")}
    for precision, path in saved.items():
        timed(ours(precision, str(real), "--against", str(real), "--save-statistics", path), environment)
    commands = {
        "pytorch-fid, two folders": [*theirs, str(real)],
        "pytorch-fid, saved statistics": [*theirs, saved["exact"]],
        "ours, exact": ours("exact", str(others), "--against", saved["exact"]),
        "ours, fast": ours("fast", str(others), "--against", saved["fast"]),
    }
    seconds: dict[str, list[float]] = {name: [] for name in commands}
    distances: dict[str, float] = {}
    for _ in range(rounds):
        for name, command in commands.items():
            taken, output = timed(command, environment)
            seconds[name].append(taken)
            found = json.loads(out.read_text())["distance"] if name.startswith("ours") else output.split("FID:")[1]
            distances[name] = float(found)
    baseline, *_ = commands
    print(f"{'whole commands':30s} {'seconds':>16s} {'speed':>7s} {'distance':>12s} {'deviation':>10s}")
    for name, times in seconds.items():
        ratio = statistics.mean(seconds[baseline]) / statistics.mean(times)
        deviation = distances[name] / distances[baseline] - 1
        print(f"{name:30s} {_with_spread(times):>16s} {ratio:6.2f}x {distances[name]:12.6f} {deviation:10.1e}")


def _with_spread(values: list[float]) -> str:
    spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.1f}{spread}"


@click.command()
@click.option("--num-images", default=256, show_default=True)
@click.option("--rounds", default=3, show_default=True, help="Of features alone; 0 for none.")
@click.option("--command-rounds", default=1, show_default=True, help="Of whole commands; 0 for none.")
@click.option("--device", default="cpu", show_default=True)
def main(num_images: int, rounds: int, command_rounds: int, device: str) -> None:
    picked = pick_device(device)
    print(f"{num_images} images a set; {platform.machine()}, {device_name(picked)}, torch {torch.__version__}")
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        real = save_images(base / "real", 0, num_images)
        others = save_images(base / "others", 60, num_images)
        # pytorch-fid takes its weights from here, and does not look at what is in the file.
        weights = base / "hub" / "checkpoints" / FID_WEIGHTS_URL.rpartition("/")[2]
        weights.parent.mkdir(parents=True)
        random_inception_weights(weights)
        if rounds:
            features_alone(real, weights, rounds, picked)
        if command_rounds:
            whole_commands(base, real, others, weights, command_rounds, picked)


if __name__ == "__main__":
    main()

"""Training throughput: our engine against the loop that one would otherwise write, side by side in one call.

The plain loop is torchvision's CIFAR100 with per-sample transforms, a DataLoader with 2 workers, and the same network,
optimizer, batch size and augmentation (random crop with padding 4, flip, normalisation). Each measurement is a process
of its own, the two kinds in turn; throughput leaves out start-up and the first steps of both.

    python tests/bench/bench_training.py [--source DIR] [--seconds 10] [--rounds 3] [--device cpu]

DIR is the folder that holds cifar-100-python/ (default: CIFARSCALE_REAL_DATA).
"""

import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import click

sys.path.insert(0, str(Path(__file__).parents[1]))  # for `runs`
BATCH_SIZES = (64, 128, 512)
WARMUP_STEPS = 20


def plain_loop(source: Path, batch_size: int, seconds: float, device: str) -> float:
    """Images a second of the loop that one would otherwise write."""
    import torch
    import torchvision
    from torch.nn import functional as F
    from torchvision import transforms

    from cifarscale.tasks.classifier.networks.small_filters_cnn import SmallFiltersCNN

    transform = transforms.Compose(
        [
            transforms.RandomCrop(32, padding=4),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize((0.507, 0.487, 0.441), (0.267, 0.256, 0.276)),
        ]
    )
    dataset = torchvision.datasets.CIFAR100(str(source), train=True, transform=transform)
    loader = torch.utils.data.DataLoader(dataset, batch_size, shuffle=True, num_workers=2, drop_last=True)
    network = SmallFiltersCNN().to(device)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3, weight_decay=0.0)
    step, started = 0, 0.0
    while True:
        for images, labels in loader:
            loss = F.cross_entropy(network(images.to(device)), labels.to(device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step += 1
            if step == WARMUP_STEPS:
                loss.item()
                started = time.perf_counter()
            elif step > WARMUP_STEPS and time.perf_counter() - started > seconds:
                loss.item()
                return (step - WARMUP_STEPS) * batch_size / (time.perf_counter() - started)


def our_engine(shards: Path, batch_size: int, seconds: float, device: str) -> float:
    """Images a second of `cifarscale train cnn` with the same settings, its log and checkpoint included."""
    from runs import run_recipe

    from cifarscale.config.load import load_training_recipe
    from cifarscale.runs.options import RunOptions
    from cifarscale.tasks.training import resolve

    steps = max(100, int(seconds * 12_000 / batch_size))
    changes = (
        f"training.global_batch_size={batch_size}",
        f"training.max_steps={steps}",
        "augmentation.crop_padding=4",
        "augmentation.flip=true",
        "evaluation.every=0",
    )
    with tempfile.TemporaryDirectory() as folder:
        recipe = resolve(load_training_recipe("cnn", changes), shards)
        return float(run_recipe(recipe, Path(folder) / "run", RunOptions(shards, device))["images_per_second"])


def _with_spread(values: list[float]) -> str:
    spread = f" ± {statistics.stdev(values):,.0f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):,.0f}{spread}"


@click.command()
@click.option("--source", type=click.Path(path_type=Path), default=os.environ.get("CIFARSCALE_REAL_DATA"))
@click.option("--seconds", default=10.0, help="Of each measurement, about.")
@click.option("--rounds", default=3)
@click.option("--device", default="cpu")
@click.option("--child", type=click.Choice(["plain", "ours"]), hidden=True)
@click.option("--batch-size", type=int, hidden=True)
@click.option("--shards", type=click.Path(path_type=Path), hidden=True)
def main(
    source: Path | None, seconds: float, rounds: int, device: str, child: str, batch_size: int, shards: Path | None
) -> None:
    """Print images a second of both, and their ratio, for several batch sizes."""
    if source is None:
        raise click.UsageError("name the folder that holds cifar-100-python/: --source DIR, or CIFARSCALE_REAL_DATA")
    if child:
        assert shards is not None
        measure, data = (plain_loop, source) if child == "plain" else (our_engine, shards)
        click.echo(json.dumps(measure(data, batch_size, seconds, device)))
        return
    import torch

    from cifarscale.data.build import build_shards

    with tempfile.TemporaryDirectory() as folder:
        shards = Path(folder) / "cifar100"
        build_shards("cifar100", shards, source=source)
        cores = len(os.sched_getaffinity(0))
        click.echo(f"{platform.processor() or platform.machine()}, {cores} cores, torch {torch.__version__}, {device}")
        click.echo(f"{'batch':>5}  {'plain loop':>20}  {'ours':>20}  ratio   (images/s, mean ± sd of {rounds})")
        for size in BATCH_SIZES:
            rates: dict[str, list[float]] = {"plain": [], "ours": []}
            for _ in range(rounds):
                for kind, values in rates.items():
                    command = [
                        sys.executable,
                        __file__,
                        "--source",
                        str(source),
                        "--shards",
                        str(shards),
                        "--child",
                        kind,
                    ]
                    command += ["--batch-size", str(size), "--seconds", str(seconds), "--device", device]
                    output = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
                    values.append(json.loads(output.splitlines()[-1]))
            shown = [_with_spread(values) for values in rates.values()]
            ratio = statistics.mean(rates["ours"]) / statistics.mean(rates["plain"])
            click.echo(f"{size:>5}  {shown[0]:>20}  {shown[1]:>20}  {ratio:5.2f}")


if __name__ == "__main__":
    main()

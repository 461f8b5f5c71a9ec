"""The promises, on the real CIFAR-100. CIFARSCALE_REAL_DATA names the folder that holds cifar-100-python/."""

import filecmp
import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import webdataset as wds

from cifarscale.data.build import build_shards
from cifarscale.data.manifest import Manifest, published_manifest
from cifarscale.runs.checkpoint import load_checkpoint, newest_checkpoint
from cifarscale.tracking.metrics import read_metrics

pytestmark = pytest.mark.real_data


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "cifarscale", *map(str, arguments)]


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(*arguments), capture_output=True, text=True)


def train(shards: Path, run_dir: Path, *settings: str, nproc: int = 1) -> list[str]:
    sets = [item for setting in settings for item in ("--set", setting)]
    return command("train", "cnn", "--data", shards, "--run-dir", run_dir, "--nproc", nproc, "--device", "cpu", *sets)


def weights(run_dir: Path) -> dict[str, torch.Tensor]:
    path = newest_checkpoint(run_dir / "checkpoints")
    assert path is not None
    tensors: dict[str, torch.Tensor] = load_checkpoint(path)["networks"]["classifier"]
    return tensors


def assert_same_weights(a: Path, b: Path) -> None:
    mine, theirs = weights(a), weights(b)
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[key], theirs[key]) for key in mine)


def test_shards_hold_every_sample_and_equal_the_published_manifest(cifar100: Path) -> None:
    manifest = Manifest.load(cifar100)
    assert {name: split.num_samples for name, split in manifest.splits.items()} == {"train": 50_000, "test": 10_000}
    assert manifest == published_manifest("cifar100")


@pytest.mark.thorough
def test_building_twice_gives_the_same_bytes(cifar100: Path, real_data: Path, tmp_path: Path) -> None:
    build_shards("cifar100", tmp_path / "again", source=real_data)
    names = [path.name for path in cifar100.iterdir()]
    same, different, missing = filecmp.cmpfiles(cifar100, tmp_path / "again", names, shallow=False)
    assert (len(same), different, missing) == (len(names), [], [])


def test_plain_webdataset_reads_all_samples(cifar100: Path) -> None:
    for split, count in (("train", 50_000), ("test", 10_000)):
        urls = sorted(str(path) for path in cifar100.glob(f"*-{split}-*.tar"))
        samples = wds.WebDataset(urls, shardshuffle=False).to_tuple("__key__", "cls", "json")
        assert len({key for key, _, _ in samples}) == count


def test_a_flipped_byte_is_found_and_training_on_it_refused(cifar100: Path, tmp_path: Path) -> None:
    damaged = random.Random(0).choice(sorted(cifar100.glob("*-train-*.tar")))
    content = bytearray(damaged.read_bytes())
    content[random.Random(1).randrange(len(content))] ^= 1
    whole = damaged.read_bytes()
    damaged.write_bytes(content)
    try:
        for arguments in (("shards", "verify", cifar100), ("train", "cnn", "--data", cifar100, "--run-dir", tmp_path)):
            refused = run(*arguments)
            assert refused.returncode == 1
            assert damaged.name in refused.stderr
    finally:
        damaged.write_bytes(whole)


@pytest.mark.distributed
def test_first_50_losses_are_equal_on_1_2_and_4_processes(cifar100: Path, tmp_path: Path) -> None:
    for nproc in (1, 2, 4):
        settings = ("training.max_steps=50", "training.log_every=1", "evaluation.every=0")
        subprocess.run(train(cifar100, tmp_path / str(nproc), *settings, nproc=nproc), check=True)
    losses = {n: [line["loss"] for line in read_metrics(tmp_path / str(n) / "metrics.jsonl")] for n in (1, 2, 4)}
    assert len(losses[1]) == 50
    assert losses[1] == losses[2] == losses[4]
    assert_same_weights(tmp_path / "1", tmp_path / "2")
    assert_same_weights(tmp_path / "1", tmp_path / "4")


@pytest.mark.thorough
def test_killed_at_three_random_moments_and_resumed_ends_with_the_same_weights(cifar100: Path, tmp_path: Path) -> None:
    settings = ("training.max_steps=300", "training.checkpoint_every=25", "evaluation.every=150")
    subprocess.run(train(cifar100, tmp_path / "whole", *settings), check=True)
    steps = random.Random(2).sample(range(30, 270), 3)
    for step in sorted(steps):
        process = subprocess.Popen(train(cifar100, tmp_path / "killed", *settings))
        while not any(line["step"] >= step for line in read_metrics(tmp_path / "killed" / "metrics.jsonl")):
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
    subprocess.run(train(cifar100, tmp_path / "killed", *settings), check=True)
    assert_same_weights(tmp_path / "whole", tmp_path / "killed")
    logs = [
        [
            (line["step"], line.get("loss"), line.get("test_loss"))
            for line in read_metrics(tmp_path / name / "metrics.jsonl")
        ]
        for name in ("whole", "killed")
    ]
    assert logs[0] == logs[1]


def test_an_eighth_of_the_baselines_recipe_is_on_its_way_to_the_baselines_accuracy(
    cifar100: Path, tmp_path: Path
) -> None:
    """26.2 % top-1 was measured after these 1,250 steps."""
    subprocess.run(train(cifar100, tmp_path / "run", "training.max_steps=1250"), check=True)
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["parameters"] == 57_332
    assert result["test"]["top1"] >= 0.23


@pytest.mark.thorough
@pytest.mark.timeout(1800)
def test_the_baselines_recipe_reaches_the_baselines_accuracy(cifar100: Path, tmp_path: Path) -> None:
    subprocess.run(train(cifar100, tmp_path / "run"), check=True)
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["parameters"] == 57_332
    assert result["steps"] == 10_000
    assert result["test"]["top1"] >= 0.34

"""What holds on one CUDA device. `--device cuda` needs one; everything here skips without."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from cifarscale.runs.checkpoint import load_checkpoint, newest_checkpoint

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


def train(shards: Path, run_dir: Path, *settings: str) -> dict[str, torch.Tensor]:
    command = [sys.executable, "-m", "cifarscale", "train", "cnn", "--device", "cuda", "--data", str(shards)]
    sets = [item for setting in ("training.max_steps=60", *settings) for item in ("--set", setting)]
    subprocess.run([*command, "--run-dir", str(run_dir), *sets], check=True)
    path = newest_checkpoint(run_dir / "checkpoints")
    assert path is not None
    weights: dict[str, torch.Tensor] = load_checkpoint(path)["networks"]["classifier"]
    return weights


def test_the_same_recipe_twice_gives_the_same_weights(shards: Path, tmp_path: Path) -> None:
    first, second = train(shards, tmp_path / "a"), train(shards, tmp_path / "b")
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_the_first_losses_agree_with_the_cpu(shards: Path, tmp_path: Path) -> None:
    train(shards, tmp_path / "cuda", "training.max_steps=5", "training.log_every=1")
    command = [sys.executable, "-m", "cifarscale", "train", "cnn", "--device", "cpu", "--data", str(shards)]
    sets = ("--set", "training.max_steps=5", "--set", "training.log_every=1")
    subprocess.run([*command, "--run-dir", str(tmp_path / "cpu"), *sets], check=True)
    cuda, cpu = (
        [json.loads(line)["loss"] for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("cuda", "cpu")
    )
    assert cuda == pytest.approx(cpu, rel=1e-3)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("compiled", ["false", "true"])
def test_mixed_precision_trains(shards: Path, tmp_path: Path, precision: str, compiled: str) -> None:
    settings = (f"training.precision={precision}", f"training.compile={compiled}", "training.microbatches=0")
    weights = train(shards, tmp_path, *settings)
    assert all(weight.isfinite().all() for weight in weights.values())
    assert (tmp_path / "result.json").exists()

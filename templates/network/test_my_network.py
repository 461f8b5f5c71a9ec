"""Run with: pytest test_my_network.py. Ranks and restarts: cifarscale verify my_network.toml --profile local"""

from pathlib import Path

import torch

import cifarscale as cs

RECIPE = Path(__file__).with_name("my_network.toml")
SHORT = {"training.max_steps": 5, "training.global_batch_size": 16, "training.log_every": 1, "evaluation.every": 0}


def test_it_trains_the_same_each_time_and_takes_images_to_logits(tmp_path: Path) -> None:
    runs = [cs.train(RECIPE, set=SHORT, device="cpu", run_dir=tmp_path / name) for name in ("one", "two")]
    losses = [[line["loss"] for line in run.metrics() if "loss" in line] for run in runs]
    assert losses[0] == losses[1]
    logits = runs[0].network("cpu")(torch.rand(5, 3, 32, 32))
    assert len(logits) == 5
    assert logits.isfinite().all()

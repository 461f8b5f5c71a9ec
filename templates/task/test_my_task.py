"""Run with: pytest test_my_task.py. Ranks and restarts: cifarscale verify my_task.toml --profile local"""

from pathlib import Path

import torch

import cifarscale as cs

RECIPE = Path(__file__).with_name("my_task.toml")
SHORT = {"training.max_steps": 5, "training.global_batch_size": 16, "training.log_every": 1, "evaluation.every": 0}


def test_it_trains_the_same_each_time_and_its_network_is_loaded(tmp_path: Path) -> None:
    runs = [cs.train(RECIPE, set=SHORT, device="cpu", run_dir=tmp_path / name) for name in ("one", "two")]
    assert runs[0].result is not None
    assert runs[0].result["test"] == runs[1].result["test"]
    images = torch.randn(5, 3, 32, 32)
    assert runs[0].network("cpu")(images).shape == images.shape

"""Run with: pytest test_my_dataset.py"""

from pathlib import Path

import pytest

import cifarscale as cs

RECIPE = Path(__file__).with_name("my_dataset.toml").resolve()


def test_it_becomes_shards_and_is_trained_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run = cs.train(RECIPE, set={"training.max_steps": 5, "evaluation.every": 0}, device="cpu")
    assert run.result is not None
    assert 0 <= run.result["test"]["top1"] <= 1
    assert (tmp_path / "shards/my_dataset/manifest.json").exists()

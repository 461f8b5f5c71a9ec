"""`import cifarscale` in a script."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from runs import Run

import cifarscale as cs
from cifarscale.errors import ConfigError, RunError

SMALL = {"training.max_steps": 20, "training.global_batch_size": 16, "evaluation.every": 0, "training.log_every": 5}


def test_only_what_is_documented_is_public() -> None:
    page = (Path(__file__).parents[2] / "docs/scripts.md").read_text(encoding="utf-8")
    assert all(f"`{name}" in page for name in dir(cs))
    assert all(getattr(cs, name).__doc__ for name in dir(cs))
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        _ = cs.trian


def test_a_run_is_trained_loaded_and_used(shards: Path, tmp_path: Path) -> None:
    before = {signum: signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM)}
    run = cs.train("cnn", set=SMALL, seed=3, data=shards, device="cpu", run_dir=tmp_path / "one")
    assert {signum: signal.getsignal(signum) for signum in before} == before
    two = f"cs.train('cnn', set={SMALL}, seed=3, data={str(shards)!r}, device='cpu', run_dir='two', nproc=2)"
    subprocess.run([sys.executable, "-c", f"import cifarscale as cs; {two}"], cwd=tmp_path, check=True)
    Run(run.path).assert_same_as(Run(tmp_path / "two"))
    assert run.recipe.seed == 3
    assert [line["step"] for line in run.metrics() if "loss" in line] == [5, 10, 15, 20]
    assert cs.load(run.path).result == run.result
    again = cs.train("cnn", set=SMALL, seed=3, data=shards, device="cpu", run_dir=tmp_path / "one")
    assert again.result == run.result
    values = cs.distance("test", features=f"cnn:{run.path}", set={"distance.allow_few_samples": True}, data=shards)
    assert values["distance"] > 0
    with pytest.raises(RunError, match="this needs a generator's"):
        run.generate(1)


def test_a_classifiers_network_takes_images_as_they_are(shards: Path, tmp_path: Path) -> None:
    run = cs.train("cnn", set=SMALL, data=shards, device="cpu", run_dir=tmp_path / "run")
    pixels = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    network = run.network("cpu")
    with torch.inference_mode():
        assert torch.allclose(network(pixels), network(pixels / 255), atol=1e-4)
        assert network(pixels).shape == (4, 100)


def test_errors_are_exceptions_with_the_text_of_the_command_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"unknown key 'training.max_step', did you mean 'training.max_steps'\?"):
        cs.train("cnn", set={"training.max_step": 1})
    with pytest.raises(RunError, match="is not a run folder"):
        cs.load(tmp_path)

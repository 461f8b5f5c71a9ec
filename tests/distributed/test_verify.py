"""`cifarscale verify` on this machine: the promise holds, and where it does not, that is seen."""

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from cifarscale.checks.verify import TOLERANCE, Comparison, compare, first_difference, shortened
from cifarscale.config.load import load_training_recipe
from cifarscale.errors import ClusterError
from cifarscale.runs.checkpoint import load_checkpoint, newest_checkpoint, save_checkpoint
from cifarscale.tracking.metrics import write_metrics

pytestmark = pytest.mark.distributed

Function = Callable[..., Any]


def test_the_promise_holds_here(cifarscale: Function, tiny: Path, shards: Path, tmp_path: Path) -> None:
    command = ("verify", tiny, "--profile", "local", "--nodes", "2", "--steps", "300", "--data", shards)
    done: subprocess.CompletedProcess[str] = cifarscale(*command, "--folder", tmp_path / "verify")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("bit-identical") == 4
    assert "The promise holds here" in done.stdout
    again: subprocess.CompletedProcess[str] = cifarscale(*command, "--folder", tmp_path / "verify")
    assert again.stdout == done.stdout  # from what was run before


def test_without_microbatches_the_other_number_of_ranks_is_equal_to_rounding(
    cifarscale: Function, tiny: Path, shards: Path, tmp_path: Path
) -> None:
    command = ("verify", tiny, "--profile", "local", "--nodes", "2", "--steps", "200", "--data", shards)
    done: subprocess.CompletedProcess[str] = cifarscale(
        *command, "--set", "training.microbatches=0", "--folder", tmp_path / "verify"
    )
    assert "killed and resumed" in done.stdout
    assert done.stdout.count("bit-identical") >= 2
    assert "differs by" in done.stdout
    assert done.returncode == 0, done.stderr
    assert "loss of the first step" in done.stdout


def test_another_weight_or_loss_is_seen(train_here: Function, tmp_path: Path) -> None:
    one, other = train_here(tmp_path / "one"), train_here(tmp_path / "other")
    assert all(each.deviation == 0 and each.holds for each in compare(one.path, other.path, "again", 0.0))
    path = newest_checkpoint(other.path / "checkpoints")
    assert path is not None
    state = load_checkpoint(path)
    weight = next(iter(state["networks"]["classifier"].values()))[0, 0, 0]
    weight[0] = torch.nextafter(weight[0], torch.tensor(9.0))
    path.unlink()
    save_checkpoint(path.parent, state["step"], state, keep=1)
    losses, weights = compare(one.path, other.path, "spoilt", 0.0)
    assert losses.holds
    assert 0 < weights.deviation < 1e-6
    assert not weights.holds
    assert not Comparison("", "", 2 * TOLERANCE, TOLERANCE).holds
    longer = train_here(tmp_path / "longer", "training.max_steps=25")
    with pytest.raises(ClusterError, match="have not logged the same steps"):
        compare(one.path, longer.path, "longer", 0.0)


ODD = f"""
task = "classifier"
modules = ["{Path(__file__).parents[1] / "odd_networks.py"}"]
model = {{ name = "counts_calls" }}
[training]
global_batch_size = 16
"""


def test_a_network_that_breaks_the_contract_is_caught_with_the_step_and_the_tensor(
    cifarscale: Function, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    (tmp_path / "odd.toml").write_text(ODD, encoding="utf-8")
    command = ("verify", tmp_path / "odd.toml", "--profile", "local", "--steps", "400", "--data", shards)
    done: subprocess.CompletedProcess[str] = cifarscale(*command, "--folder", tmp_path / "verify")
    assert done.returncode == 1
    line = done.stderr.strip().splitlines()[-1]
    begin = "error: the promise does not hold here: killed and resumed, the run differs first in step "
    assert line.startswith(begin)
    step, _, names = line.removeprefix(begin).partition(": ")
    assert int(step) % 50 == 1  # checkpoints come every 50 steps, and what the first one lacks is missed in the next
    assert names.startswith("loss, classifier.first.weight, classifier.first.bias and 2 more. ")


def test_the_first_difference_may_be_a_tensor_alone(train_here: Function, tmp_path: Path) -> None:
    """One that the loss does not depend on at once."""
    one, other = train_here(tmp_path / "one"), train_here(tmp_path / "other")
    lines = [{"step": step, "classifier.a": 1, "classifier.b": 2} for step in range(1, 6)]
    write_metrics(one.path / "digests.jsonl", lines)
    write_metrics(other.path / "digests.jsonl", [line | {"classifier.b": line["step"] // 4 + 2} for line in lines])
    assert first_difference(one.path, other.path) == "step 4: classifier.b"
    write_metrics(other.path / "digests.jsonl", lines)
    assert first_difference(one.path, other.path) == ""


def test_a_short_run_has_checkpoints_on_its_way_and_a_warmup_that_fits() -> None:
    recipe = shortened(load_training_recipe("cnn", ("schedule.name=cosine", "schedule.warmup_steps=500")), 80)
    assert (recipe.training.max_steps, recipe.training.checkpoint_every, recipe.schedule.warmup_steps) == (80, 10, 20)
